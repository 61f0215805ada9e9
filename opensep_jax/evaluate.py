"""Scores checkpoints on seeded mixtures of prepared clips that they were not trained on.

    python -m opensep_jax.evaluate --checkpoint demo --data runs/soundbank --out runs/evaluation

A protocol says how mixtures are made, queried and scored (--protocol; other flags change it).
Beside the checkpoints stand the unprocessed mixture and ideal masks; a network without text is
scored by its best permutation. With the query `discovered` nothing is asked for: mixtures are
captioned, the captions parsed, and what was found is compared with what is there.

Writes `items.jsonl` (a line for each mixture) as it goes, so that a killed run goes on where it
stopped, and several processes share the work (--num_shards); then `results.json`, `results.md`,
`results.csv` (`discovered.csv`) and TensorBoard events.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from opensep_jax import __version__, sharding
from opensep_jax.api import Separator
from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.cli import DoorError, run
from opensep_jax.data import lists
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.data.storage import write_json
from opensep_jax.data.union import open_prepared
from opensep_jax.discovery import Discovery
from opensep_jax.evaluation import discovered, tables
from opensep_jax.evaluation.journal import Journal, claim
from opensep_jax.evaluation.overlap import names_of, overlapping_clips
from opensep_jax.evaluation.protocol import DISCOVERED, Protocol, load_protocol, protocol_names
from opensep_jax.evaluation.queries import load_queries
from opensep_jax.evaluation.scores import score_lists
from opensep_jax.evaluation.systems import BASELINES, System, load_system
from opensep_jax.flags import (
    add_captioner_flags,
    add_language_flags,
    captioner_options,
    language_options,
)
from opensep_jax.signal.measures import MEASURES
from opensep_jax.text.caption import load_captioner
from opensep_jax.text.parse import load_parser
from opensep_jax.text.wordings import WORDINGS
from opensep_jax.training.board import Board
from opensep_jax.training.validation import RULES

logger = logging.getLogger("opensep_jax")

_RULE_TEXT = {
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
    flags.add_argument(
        "--checkpoint", nargs="+", default=["demo"], help="names, exported folders or workdirs"
    )
    flags.add_argument(
        "--data", required=True, help="made by prepare: a folder or URL, or several with commas"
    )
    flags.add_argument("--out", required=True, type=Path)
    flags.add_argument(
        "--protocol", default="opensep_jax", help=f"{', '.join(protocol_names())}, or a JSON file"
    )
    flags.add_argument(
        "--list", help="mixtures of this list (assets/lists, or a file); default: drawn by --seed"
    )
    flags.add_argument("--write_list", type=Path, metavar="FILE", help="write the list, and stop")
    flags.add_argument("--seed", type=int, default=0, help="of lists that are drawn")
    flags.add_argument(
        "--baselines",
        default=",".join(BASELINES),
        help=f"out of {','.join(BASELINES)} (default: all); empty for none",
    )
    flags.add_argument(
        "--train_data", help="what was trained on, as in --data: its clips are left out, and "
        "classes are told apart as seen and unseen",
    )  # fmt: skip
    flags.add_argument("--train_split", default="train", help="of --train_data; see --split")
    flags.add_argument("--batch", type=int, default=8, help="mixtures at a time")
    flags.add_argument("--num_shards", type=int, default=1, help="processes that share the work")
    flags.add_argument("--shard", type=int, default=0, help="number of this process, from 0")
    group = flags.add_argument_group("changes of the protocol")
    group.add_argument("--split", help="of the data, or several with commas: test,test_unseen")
    group.add_argument("--num_sources", help="sources per mixture, e.g. 2,3,4")
    group.add_argument("--mixtures", type=int, help="of each number of sources")
    group.add_argument("--seconds", type=float, help="length of a mixture")
    group.add_argument("--level_db", type=float, help="+- around equal RMS")
    group.add_argument(
        "--queries", help=f"out of {','.join(WORDINGS)},{DISCOVERED}; the last is of the first "
        "checkpoint",
    )  # fmt: skip
    group.add_argument("--masks", help=f"out of {','.join(RULES)}")
    group.add_argument("--measures", help=f"out of {','.join(MEASURES)}")
    add_captioner_flags(flags)
    add_language_flags(flags)
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Scores every list and writes the files."""
    _check_flags(args)
    protocol = _protocol(args)
    dataset = open_prepared(args.data, protocol.split)
    train = open_prepared(args.train_data, args.train_split) if args.train_data else None
    trained = overlapping_clips(dataset, train) if train else []
    mixtures = _lists(args, protocol, dataset, frozenset(trained))
    if args.write_list:
        lists.write_list(args.write_list, dataset, mixtures)
        return 0
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1, devices=jax.local_devices())
    if args.batch % mesh.size:
        raise DoorError(f"--batch {args.batch} is not divisible by the {mesh.size} devices")
    systems = [load_system(name, mesh) for name in args.checkpoint]
    for system in systems:
        _check_fits(system, dataset, args)
    queries = load_queries(dataset, mixtures, protocol.wordings)
    about = _about(args, protocol, dataset, train, mixtures, systems, trained)
    if DISCOVERED in protocol.queries:
        separator, discovery = _listener(args)
        about["discovery"] = {
            "checkpoint": args.checkpoint[0],
            "captioner": discovery.captioner.id, "parser": discovery.parser.id,
            "merge_similarity": args.merge_similarity, "min_energy_share": args.min_energy_share,
        }  # fmt: skip
    claim(args.out, about)

    share = {"shard": args.shard, "num_shards": args.num_shards}
    journals = [Journal(args.out, "items", **share)]
    score_lists(
        queries, mixtures, protocol, systems, _chosen(args.baselines), journals[0], mesh=mesh,
        batch=args.batch, seen=names_of(train) if train else None, **share,
    )  # fmt: skip
    if DISCOVERED in protocol.queries:
        journals.append(Journal(args.out, "discovered", **share))
        discovered.score_discovery(
            separator, discovery, dataset, mixtures, protocol, args.min_energy_share,
            journals[1], **share,
        )  # fmt: skip
    total = sum(map(len, mixtures.values()))
    for journal in journals:
        journal.refresh()
        if len(journal.lines) < total:
            logger.info("%d of %d mixtures are scored, by other processes the rest",
                        len(journal.lines), total)  # fmt: skip
            return 0
    _write(args.out, about, protocol, systems, *(journal.finish() for journal in journals))
    return 0


def _protocol(args: argparse.Namespace) -> Protocol:
    """The protocol with the changes that flags make to it."""
    protocol = load_protocol(args.protocol)
    level = args.level_db
    changed = protocol.changed(
        {
            "split": args.split,
            "num_sources": _numbers(args.num_sources) if args.num_sources else None,
            "mixtures": args.mixtures,
            "seconds": args.seconds,
            "range_db": None if level is None else (-level, level),
            **{k: _chosen(getattr(args, k)) for k in ("queries", "masks", "measures")},
        }
    )
    improves = changed.headline.endswith("i")
    if improves and changed.wordings and "mixture" not in _chosen(args.baselines):
        raise DoorError(
            f"--baselines {args.baselines!r}: {changed.headline}, the figure of protocol "
            f"{args.protocol}, is an improvement over `mixture`"
        )
    return changed


def _lists(
    args: argparse.Namespace, protocol: Protocol, dataset: PreparedDataset, without: frozenset[int]
) -> dict[int, list[lists.ListedMixture]]:
    """The mixtures by number of sources."""
    if not args.list:
        return {
            count: lists.list_mixtures(
                dataset, protocol.mixtures, count, args.seed, protocol.partners, without
            )
            for count in protocol.num_sources
        }
    known = lists.read_list(args.list, dataset)
    missing = [str(count) for count in protocol.num_sources if count not in known]
    if missing:
        raise DoorError(f"--list {args.list} has no mixtures of {', '.join(missing)} sources")
    found = {count: known[count][: protocol.mixtures] for count in protocol.num_sources}
    used = {clip for mixtures in found.values() for mixture in mixtures for clip in mixture.clips}
    if used & without:
        path = dataset.clips[min(used & without)].path
        raise DoorError(
            f"--list {args.list}: {len(used & without)} of its clips are in --train_data "
            f"{args.train_data}, such as {path}"
        )
    return found


def _listener(args: argparse.Namespace) -> tuple[Separator, Discovery]:
    separator = Separator.from_pretrained(args.checkpoint[0])
    captioner = load_captioner(**captioner_options(args))
    reader = load_parser(**language_options(args))
    return separator, Discovery(captioner, reader, args.merge_similarity)


def _about(
    args: argparse.Namespace,
    protocol: Protocol,
    dataset: PreparedDataset,
    train: PreparedDataset | None,
    mixtures: Mapping[int, Sequence[lists.ListedMixture]],
    systems: Sequence[System],
    trained: Sequence[int],
) -> dict:
    """What the figures depend on; a folder holds those of one such."""
    about = {
        "version": __version__,
        "systems": [{"name": s.name, "id": s.id, "steps": s.steps} for s in systems],
        "baselines": args.baselines,
        "batch": args.batch,
        "protocol": {"name": args.protocol, **dataclasses.asdict(protocol)},
        "data": {"contents": dataset.contents, "sample_rate_hz": dataset.sample_rate_hz,
                 "text_encoder": dataset.info["text_encoder"]["id"]},
        "lists": {str(n): lists.digest(dataset, rows) for n, rows in mixtures.items()},
    }  # fmt: skip
    if protocol.sample_rate_hz not in (0, dataset.sample_rate_hz):
        about["protocol"]["differs"] = (
            *protocol.differs, f"{dataset.sample_rate_hz} Hz instead of {protocol.sample_rate_hz}"
        )  # fmt: skip
    if train is not None:
        about["train_data"] = train.contents
        about["clips_left_out_as_trained_on"] = len(trained)
    return about


def _write(
    out: Path,
    about: dict,
    protocol: Protocol,
    systems: Sequence[System],
    items: Sequence[dict],
    found: Sequence[dict] = (),
) -> None:
    """Tables of all items, for people, programs and TensorBoard."""
    counted = protocol.aggregate, protocol.scored, protocol.silence
    rows = tables.summarise(tables.with_improvements(items), *counted)
    found_rows = [
        {"sources": n, **discovered.summary([line for line in found if line["sources"] == n])}
        for n in sorted({line["sources"] for line in found})
    ]
    results = {**about, "rows": tables.flat(rows), "discovered": tables.flat(found_rows)}
    write_json(out / "results.json", results)
    tables.write_csv(out / "results.csv", results["rows"])
    if found_rows:
        tables.write_csv(out / "discovered.csv", results["discovered"])
    text = _introduction(about, protocol)
    if rows:
        text += tables.markdown(rows, protocol.headline)
    if found_rows:
        who = about["discovery"]["checkpoint"]
        text += f"\nWithout a query, separated by `{who}`:\n\n" + discovered.markdown(found_rows)
    (out / "results.md").write_text(text)
    board, step = Board(out), max(system.steps or 0 for system in systems)
    for row in results["rows"]:
        name = "_".join(filter(None, (row["system"], row["query"], row["masks"])))
        where = f"{row['sources']}_sources/{name.replace('/', '_')}/{row['group']}"
        board.scalars(step, {
            f"{where}/{k}": v for k, v in row.items() if isinstance(v, float)
        })  # fmt: skip
    for row in results["discovered"]:
        board.scalars(step, {
            f"{row['sources']}_sources/discovered/{k}": v for k, v in row.items()
            if isinstance(v, float)
        })  # fmt: skip
    board.text(step, "results", text)
    board.close()
    print(text)


def _introduction(about: dict, protocol: Protocol) -> str:
    """What the table shows, before it."""
    lists_said = ", ".join(f"{n}: `{digest}`" for n, digest in about["lists"].items())
    lines = [
        f"Protocol `{about['protocol']['name']}`: {protocol.about} {protocol.seconds:g} s, split "
        f"`{protocol.split}`, lists by number of sources {lists_said}. dB; mean of mixtures "
        f"({protocol.aggregate}) and 95 % bootstrap interval. The protocol's figure: "
        f"`{protocol.headline}`.",
        *(f"- Differs: {difference}." for difference in about["protocol"]["differs"]),
        *(f"- Masks `{rule}`: {_RULE_TEXT[rule]}." for rule in protocol.masks),
    ]
    return "\n".join(lines) + "\n\n"


def _check_fits(system: System, dataset: PreparedDataset, args: argparse.Namespace) -> None:
    """The data must have the checkpoint's rate and text encoder."""
    pairs = {
        "sample_rate_hz": (system.net.sample_rate_hz, dataset.sample_rate_hz),
        "text encoder": (system.text_encoder, dataset.info["text_encoder"]["id"]),
    }
    wrong = [f"{k} {a} there, {b} here" for k, (a, b) in pairs.items() if a not in (b, None)]
    if wrong:
        raise DoorError(
            f"checkpoint {system.name} and data {args.data} do not fit: {'; '.join(wrong)}"
        )


def _check_flags(args: argparse.Namespace) -> None:
    """Refuses what nothing can be made of."""
    if args.batch < 1:
        raise DoorError(f"--batch {args.batch} must be positive")
    if args.seed < 0:
        raise DoorError(f"--seed {args.seed} must not be negative")
    if not 0 <= args.shard < args.num_shards:
        raise DoorError(f"--shard {args.shard} is not within --num_shards {args.num_shards}")
    wrong = [name for name in _chosen(args.baselines) if name not in BASELINES]
    if wrong:
        raise DoorError(f"--baselines {','.join(wrong)} not known; known: {', '.join(BASELINES)}")
    if len(set(args.checkpoint)) < len(args.checkpoint):
        raise DoorError(f"--checkpoint {' '.join(args.checkpoint)}: each once")


def _chosen(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part for part in text.split(",") if part)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise DoorError(f"--num_sources {text}: numbers separated by commas are needed") from error


def cli() -> None:
    """Entry point of `opensep-evaluate`."""
    sys.exit(run(main, parser(), (RecordError, ValueError, WeightsError)))


if __name__ == "__main__":
    cli()
