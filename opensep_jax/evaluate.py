"""Scores a checkpoint on seeded mixtures of prepared clips that it was not trained on.

    python -m opensep_jax.evaluate --checkpoint demo --data runs/soundbank --out runs/evaluation

Classes of a mixture come from different families, levels differ by at most 2.5 dB either way from
equal RMS, and every source is queried by its prompt. With --discover nothing is queried: mixtures
are captioned, the captions parsed, and what was found is compared with what is there. Writes
`items.jsonl` (each mixture with its sources and scores), `results.json` and `results.md`.
"""

import argparse
import json
import logging
import math
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from opensep_jax import __version__, discovered, sharding
from opensep_jax.api import Separator, load_separator
from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.cli import DoorError, run
from opensep_jax.data.lists import ListedMixture, list_mixtures, text_ids
from opensep_jax.data.records import PreparedDataset, RecordError, write_json
from opensep_jax.discovery import Discovery
from opensep_jax.flags import (
    add_captioner_flags,
    add_language_flags,
    captioner_options,
    language_options,
)
from opensep_jax.text.caption import load_captioner
from opensep_jax.text.parse import load_parser
from opensep_jax.text.wordings import WORDINGS
from opensep_jax.training.validation import (
    RULES,
    jitted_scores,
    mean_and_error,
    mixture_batches,
)

logger = logging.getLogger(__name__)

RULE_TEXT = {
    "none": "masks as drawn",
    "limit": "scaled down where they exceed the mixture (what `infer` does)",
    "normalise": "divided by their sum (no residual)",
}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="opensep_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--checkpoint", default="demo", help="name, exported folder or workdir")
    flags.add_argument("--data", required=True, type=Path, help="folder made by prepare")
    flags.add_argument("--split", default="val")
    flags.add_argument("--out", required=True, type=Path)
    flags.add_argument("--num_sources", default="2,3", help="sources per mixture, e.g. 2,3,4")
    flags.add_argument("--mixtures", type=int, default=200, help="of each number of sources")
    flags.add_argument("--seconds", type=float, default=5.0, help="length of a mixture")
    flags.add_argument("--level_db", type=float, default=2.5, help="+- around equal RMS")
    flags.add_argument(
        "--wordings", default="caption,label", help=f"kinds of query out of {','.join(WORDINGS)}"
    )
    flags.add_argument("--seed", type=int, default=0, help="of the lists")
    flags.add_argument("--batch", type=int, default=8, help="mixtures at a time")
    flags.add_argument(
        "--discover", action="store_true", help="score separation without queries instead"
    )
    add_captioner_flags(flags)
    add_language_flags(flags)
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Scores every list and writes the files."""
    counts = _numbers(args.num_sources)
    _check_flags(args)
    wordings = args.wordings.split(",")
    unknown = [wording for wording in wordings if wording not in WORDINGS]
    if unknown:
        raise DoorError(f"--wordings {','.join(unknown)} not known; known: {', '.join(WORDINGS)}")
    config, net, params = load_separator(args.checkpoint)
    dataset = PreparedDataset(args.data, args.split)
    _check_fits(config, dataset, args)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.discover:
        return _discover(args, counts, dataset)

    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    if args.batch % mesh.size:
        raise DoorError(f"--batch {args.batch} is not divisible by the {mesh.size} devices")
    params = jax.device_put(params, sharding.replicated(mesh))
    rows = []
    with (args.out / "items.jsonl").open("w") as items:
        for sources in counts:
            mixtures = list_mixtures(dataset, args.mixtures, sources, args.seed)
            for wording in wordings:
                name = f"{sources} sources by {wording}"
                scores = _score(args, net, params, dataset, mixtures, wording, mesh, name)
                for item in _items(dataset, mixtures, wording, scores):
                    items.write(json.dumps(item) + "\n")
                rows += _rows(sources, wording, scores)
    results = {
        "version": __version__,
        "checkpoint": {"name": args.checkpoint, "steps": config.get("steps")},
        "data": {"split": args.split, "text_encoder": dataset.info["text_encoder"]["id"]},
        "protocol": _protocol(args, dataset),
        "rows": rows,
    }
    _write(args.out, results, _markdown(results))
    return 0


def _discover(args: argparse.Namespace, counts: list[int], dataset: PreparedDataset) -> int:
    """Scores every list without queries."""
    separator = Separator.from_pretrained(args.checkpoint)
    captioner = load_captioner(**captioner_options(args))
    discovery = Discovery(captioner, load_parser(**language_options(args)), args.merge_similarity)
    protocol = discovered.Protocol(args.seconds, args.level_db, args.min_energy_share)
    rows = []
    with (args.out / "items.jsonl").open("w") as items:
        for sources in counts:
            mixtures = list_mixtures(dataset, args.mixtures, sources, args.seed)
            scored = discovered.score_discovery(separator, discovery, dataset, mixtures, protocol)
            items.writelines(json.dumps({"sources": sources, **item}) + "\n" for item in scored)
            rows.append({"sources": sources, **discovered.summary(scored)})
    models = {"captioner": captioner.id, "parser": discovery.parser.id}
    results = {
        "version": __version__,
        "models": models | {k: v["id"] for k, v in separator.models.items()},
        "protocol": _protocol(args, dataset) | {"min_energy_share": args.min_energy_share},
        "rows": rows,
    }
    _write(args.out, results, discovered.markdown(rows))
    return 0


def _protocol(args: argparse.Namespace, dataset: PreparedDataset) -> dict:
    """How the mixtures are made."""
    return {
        "split": args.split, "mixtures": args.mixtures, "seconds": args.seconds,
        "level_db": args.level_db, "seed": args.seed,
        "families_distinct": bool(dataset.info["families"]),
    }  # fmt: skip


def _write(out: Path, results: dict, table: str) -> None:
    write_json(out / "results.json", results)
    (out / "results.md").write_text(table)
    print(table)


def _score(
    args: argparse.Namespace,
    net: object,
    params: dict,
    dataset: PreparedDataset,
    mixtures: list[ListedMixture],
    wording: str,
    mesh: jax.sharding.Mesh,
    name: str,
) -> dict[str, np.ndarray]:
    """Scores of all mixtures, [M, S] for each measure."""
    batches = mixture_batches(
        dataset, mixtures, seconds=args.seconds, level_db=args.level_db, wording=wording,
        batch=args.batch,
    )  # fmt: skip
    total = -(-len(mixtures) // args.batch)
    scores = [
        jax.device_get(jitted_scores(net)(params, sharding.shard_batch(batch, mesh)))
        for batch in tqdm(batches, name, total=total, disable=None)
    ]
    return {k: np.concatenate([s[k] for s in scores])[: len(mixtures)] for k in scores[0]}


def _rows(sources: int, wording: str, scores: dict[str, np.ndarray]) -> list[dict]:
    """A row of the table for every rule."""
    rows = []
    for rule in RULES:
        si_sdri, error = mean_and_error(scores[f"si_sdri_{rule}"])
        snri, snri_error = mean_and_error(scores[f"snri_{rule}"])
        per_mixture = scores[f"si_sdri_{rule}"].mean(-1)
        rows.append(
            {
                "sources": sources, "wording": wording, "masks": rule, "mixtures": len(per_mixture),
                "si_sdri_db": round(si_sdri, 3), "si_sdri_error_db": round(error, 3),
                "si_sdri_median_db": round(float(np.median(per_mixture)), 3),
                "snri_db": round(snri, 3), "snri_error_db": round(snri_error, 3),
            }
        )  # fmt: skip
    return rows


def _items(
    dataset: PreparedDataset,
    mixtures: list[ListedMixture],
    wording: str,
    scores: dict[str, np.ndarray],
) -> list[dict]:
    """A line of `items.jsonl` for every mixture."""
    items = []
    for number, mixture in enumerate(mixtures):
        clips = [dataset.clips[index] for index in mixture.clips]
        items.append(
            {
                "sources": len(clips),
                "item": number,
                "wording": wording,
                "clips": [clip.path for clip in clips],
                "labels": [clip.sources[0].name for clip in clips],
                "prompts": [dataset.text.prompts[i] for i in text_ids(dataset, mixture, wording)],
                **{k: [round(float(x), 3) for x in v[number]] for k, v in scores.items()},
            }
        )
    return items


def _markdown(results: dict) -> str:
    """The table for people."""
    protocol = results["protocol"]
    lines = [
        f"Checkpoint `{results['checkpoint']['name']}` ({results['checkpoint']['steps']} steps), "
        f"{protocol['mixtures']} mixtures of {protocol['seconds']:g} s for each number of sources, "
        f"+-{protocol['level_db']:g} dB, list seed {protocol['seed']}; mean +- standard error.",
        "",
        "| sources | query | masks | SI-SDR improvement (dB) | median | SNR improvement (dB) |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['sources']} | {row['wording']} | {row['masks']} | "
            f"{row['si_sdri_db']:.2f} +- {row['si_sdri_error_db']:.2f} | "
            f"{row['si_sdri_median_db']:.2f} | "
            f"{row['snri_db']:.2f} +- {row['snri_error_db']:.2f} |"
        )
    lines += ["", *(f"- `{rule}`: {text}" for rule, text in RULE_TEXT.items())]
    return "\n".join(lines) + "\n"


def _check_fits(config: dict, dataset: PreparedDataset, args: argparse.Namespace) -> None:
    """The data must have the checkpoint's rate and text encoder."""
    pairs = {
        "sample_rate_hz": (config["sample_rate_hz"], dataset.sample_rate_hz),
        "text encoder": (config["text_encoder"]["id"], dataset.info["text_encoder"]["id"]),
    }
    wrong = [f"{k} {a} there, {b} here" for k, (a, b) in pairs.items() if a != b]
    if wrong:
        raise DoorError(
            f"checkpoint {args.checkpoint} and data {args.data} do not fit: {'; '.join(wrong)}"
        )


def _check_flags(args: argparse.Namespace) -> None:
    """Refuses numbers that no list can be made of."""
    for name in ("mixtures", "batch", "seconds"):
        value = getattr(args, name)
        if not 0 < value < math.inf:
            raise DoorError(f"--{name} {value} must be positive")
    if not 0 <= args.level_db < math.inf:
        raise DoorError(f"--level_db {args.level_db} must not be negative")
    if args.seed < 0:
        raise DoorError(f"--seed {args.seed} must not be negative")


def _numbers(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise DoorError(f"--num_sources {text}: numbers separated by commas are needed") from error
    if min(counts) < 2:
        raise DoorError(f"--num_sources {text}: a mixture has at least 2 sources")
    return counts


def cli() -> None:
    """Entry point of `opensep-evaluate`."""
    sys.exit(run(main, parser(), (RecordError, ValueError, WeightsError)))


if __name__ == "__main__":
    cli()
