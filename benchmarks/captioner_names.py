"""How well the embedded captioner names the sources of seeded mixtures.

    python -m benchmarks.captioner_names --data runs/soundbank --out runs/captioner_names

Classes of a mixture come from different families, levels differ by at most 2.5 dB either way from
equal RMS. Captions are split into clauses, and a clause is right when it is that of a source of the
mixture. Beside the captions stands the captioner's own tag head (tags above a probability of one
half). Writes `items.jsonl`, `results.json` and `results.md`.
"""

import argparse
import collections
import json
import logging
import sys
from pathlib import Path

import jax
import numpy as np

from opensep_jax import sharding
from opensep_jax.cli import DoorError, run
from opensep_jax.data.lists import list_mixtures
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.data.storage import write_json
from opensep_jax.text.demo_captioner import load_captioner
from opensep_jax.training.caption_scores import (
    caption_mixtures,
    name_scores,
    names_said,
    true_names,
)

_SCORES = ("precision", "recall", "f1", "count_error", "exact")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="benchmarks.captioner_names",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--checkpoint", default="demo", help="name, exported folder or workdir")
    flags.add_argument("--data", required=True, type=Path, help="folder made by prepare")
    flags.add_argument("--split", default="val")
    flags.add_argument("--out", required=True, type=Path)
    flags.add_argument("--num_sources", default="1,2,3,4", help="sources per mixture")
    flags.add_argument("--mixtures", type=int, default=200, help="of each number of sources")
    flags.add_argument("--level_db", type=float, default=2.5, help="+- around equal RMS")
    flags.add_argument("--seed", type=int, default=0, help="of the lists")
    flags.add_argument("--batch", type=int, default=20, help="mixtures at a time")
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Scores every list and writes the files."""
    config, listener, params = load_captioner(args.checkpoint)
    dataset = PreparedDataset(args.data, args.split)
    if dataset.sample_rate_hz != config["sample_rate_hz"]:
        raise DoorError(
            f"{args.data} has {dataset.sample_rate_hz} Hz, {args.checkpoint} needs "
            f"{config['sample_rate_hz']} Hz"
        )
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    clauses, rows, items = dict(listener.clauses), [], []
    for sources in map(int, args.num_sources.split(",")):
        mixtures = list_mixtures(dataset, args.mixtures, sources, args.seed)
        captions, tag_MK = caption_mixtures(
            listener, params, dataset, mixtures, mesh=mesh, seconds=config["window_s"],
            level_db=args.level_db, batch=args.batch,
        )  # fmt: skip
        true = [true_names(dataset, mixture) for mixture in mixtures]
        said = [names_said(caption, clauses) for caption in captions]
        tagged = [{list(clauses)[k] for k in np.flatnonzero(tag_K > 0)} for tag_K in tag_MK]
        for by, names in (("caption", said), ("tags", tagged)):
            rows.append({"sources": sources, "by": by, **name_scores(names, true)})
        items += [
            {"sources": sources, "caption": c, "said": sorted(s), "true": sorted(t)}
            for c, s, t in zip(captions, said, true, strict=True)
        ]
    results = {
        "checkpoint": {"name": args.checkpoint, "steps": config.get("steps")},
        "protocol": {
            "split": args.split, "mixtures": args.mixtures, "seconds": config["window_s"],
            "level_db": args.level_db, "seed": args.seed,
            "families_distinct": bool(dataset.info["families"]),
        },
        "rows": rows,
        "recall_of_names": recall_of_names(items),
        "confusions": confusions(items),
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    write_json(args.out / "results.json", results)
    (args.out / "results.md").write_text(markdown(results))
    print(markdown(results))
    return 0


def recall_of_names(items: list[dict]) -> dict[str, list]:
    """Share of the mixtures with a name in which it is said, and their number; worst first."""
    heard: dict[str, list[bool]] = collections.defaultdict(list)
    for item in items:
        for name in item["true"]:
            heard[name].append(name in item["said"])
    rows = [(name, round(float(np.mean(hits)), 3), len(hits)) for name, hits in heard.items()]
    return {name: [recall, count] for name, recall, count in sorted(rows, key=lambda row: row[1])}


def confusions(items: list[dict], most: int = 30) -> list[list]:
    """(missed name, wrong name, number of mixtures in which both are), most frequent first."""
    pairs = collections.Counter(
        (missed, wrong)
        for item in items
        for missed in set(item["true"]) - set(item["said"])
        for wrong in set(item["said"]) - set(item["true"])
    )
    return [[*pair, count] for pair, count in sorted(pairs.items(), key=lambda p: (-p[1], p[0]))][
        :most
    ]


def markdown(results: dict) -> str:
    """The tables for people."""
    protocol, name = results["protocol"], results["checkpoint"]["name"]
    lines = [
        f"Captioner `{name}` ({results['checkpoint']['steps']} steps), {protocol['mixtures']} "
        f"mixtures of {protocol['seconds']:g} s of split {protocol['split']} for each number of "
        f"sources, +-{protocol['level_db']:g} dB, list seed {protocol['seed']}.",
        "",
        "| sources | names by | precision | recall | F1 | mean abs. count error | exact sets |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        scores = " | ".join(f"{row[score]:.3f}" for score in _SCORES)
        lines.append(f"| {row['sources']} | {row['by']} | {scores} |")
    worst = list(results["recall_of_names"].items())[:15]
    lines += [
        "",
        "Least recalled: " + ", ".join(f"{name} {recall:.2f}" for name, (recall, _) in worst) + ".",
        "",
        "Missed -> said: "
        + ", ".join(f"{missed} -> {said} ({n})" for missed, said, n in results["confusions"][:15])
        + ".",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s")
    sys.exit(run(main, parser(), (RecordError, ValueError)))
