"""Turns a data set into records: cut, caption, parse, embed.

    python -m opensep_jax.prepare --dataset vggsound --root VGGSOUND --out runs/vggsound
    python -m opensep_jax.prepare --inspect runs/vggsound

Every file of the records is a pure function of the data set and the options: killed runs go on
where they stopped, and processes with `--shard I --num_shards N` share the work with the same
result. Words come from the data set's labels or captions, or from a captioner (`--words`); a
parser finds the sources in captions and adds acoustic properties.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import logging
import math
import sys
from importlib import resources
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from opensep_jax import __version__
from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.cli import EXIT_DONE, EXIT_SOME_FAILED, DoorError, run
from opensep_jax.data import published
from opensep_jax.data.datasets import Dataset, coverage
from opensep_jax.data.shards import AUDIO_CODECS, SCHEMA_VERSION, read_index, shard_name
from opensep_jax.data.storage import RecordError, read_json, write_json
from opensep_jax.data.summary import summarise, summarise_split
from opensep_jax.data.text_table import read_msgpack
from opensep_jax.data.wording import WORDS
from opensep_jax.flags import add_language_flags, captioner_options, language_options
from opensep_jax.preparation import stages as preparing
from opensep_jax.preparation.inspection import inspect
from opensep_jax.preparation.stages import Work
from opensep_jax.text.caption import POLICIES, load_captioner
from opensep_jax.text.embed import load_text_encoder
from opensep_jax.text.parse import load_parser
from opensep_jax.text.wordings import TEMPLATES

logger = logging.getLogger("opensep_jax")

_SHOWN_PROBLEMS = 50
# How the paper words each data set, as far as it is known: AudioCaps by its captions.
_WORDS = {"audiocaps": "caption"}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="opensep_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--dataset", choices=sorted(published.READERS))
    flags.add_argument("--root", type=Path, help="folder of the data set")
    flags.add_argument("--out", type=Path, help="folder of the records")
    flags.add_argument(
        "--sample_rate_hz", type=int, default=16000, help="of the records (default 16000)"
    )
    flags.add_argument(
        "--max_seconds",
        type=float,
        default=30.0,
        help="longer files are cut into such clips (default 30)",
    )
    flags.add_argument(
        "--speeds", default="1", help="clips of training splits at each of these, as in 0.9,1,1.1"
    )
    flags.add_argument(
        "--audio", default="pcm16", choices=AUDIO_CODECS, help="how samples are stored"
    )
    words = flags.add_argument_group("words")
    words.add_argument(
        "--words",
        choices=WORDS,
        help="what names sources; default: label, but caption for audiocaps",
    )
    words.add_argument(
        "--enrich",
        action=argparse.BooleanOptionalAction,
        help="add acoustic properties to labels; default: yes, but not for a folder",
    )
    words.add_argument("--captioner", default="demo", help="for --words captioner; as in infer")
    words.add_argument("--caption_policy", default=POLICIES[0], choices=POLICIES)
    words.add_argument("--caption_windows", type=int, default=8, help="of a clip, at most")
    words.add_argument(
        "--text_encoder", default="minilm", help="local folder, hub id, or minilm (default)"
    )
    words.add_argument(
        "--max_tokens", type=int, default=256, help="longest prompt; a pair has two of them"
    )
    add_language_flags(flags)
    share = flags.add_argument_group("processes")
    share.add_argument("--num_shards", type=int, default=1, help="processes that share the work")
    share.add_argument("--shard", type=int, default=0, help="number of this process, from 0")
    share.add_argument("--coordinator_address", help="host:port of process 0: all run at once")
    share.add_argument("--distributed", action="store_true", help="find the others by itself")
    look = flags.add_argument_group("to look at records")
    look.add_argument("--inspect", metavar="DIR", help="print what these records hold")
    look.add_argument("--split", help="of --inspect, default the first")
    look.add_argument("--number", type=int, default=8, help="records to print, default 8")
    look.add_argument(
        "--play", type=Path, metavar="FOLDER", help="write them as WAV files, with a page"
    )
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Prepares this process's share; the last process to finish writes `dataset.json`."""
    if args.inspect:
        inspect(args.inspect, args.split, args.number, args.play)
        return EXIT_DONE
    _check(args)
    together = bool(args.distributed or args.coordinator_address)
    if together:
        processes = (args.num_shards, args.shard) if args.coordinator_address else (None, None)
        jax.distributed.initialize(args.coordinator_address, *processes)
        args.num_shards, args.shard = jax.process_count(), jax.process_index()
    work = _work(args)
    _check_plan(work)
    preparing.cut(work)
    preparing.caption(work)
    preparing.parse(work)
    preparing.index(work)
    if together:
        multihost_utils.sync_global_devices("indexed")
    missing = preparing.missing_shards(work)
    if missing:
        logger.info("this share is done; %d shards of other processes are missing", len(missing))
    else:
        text_shards = preparing.embed(work, share=together)
        if together:
            multihost_utils.sync_global_devices("embedded")
        if not together or work.shard == 0:
            _finish(work, text_shards)
    return _report(work)


def _check(args: argparse.Namespace) -> None:
    """Refuses flags that make no sense."""
    if not (args.dataset and args.root and args.out):
        raise DoorError("--dataset, --root and --out are needed (or --inspect DIR)")
    if not 0 <= args.shard < args.num_shards:
        raise DoorError(f"--shard {args.shard} is not within --num_shards {args.num_shards}")
    if not 0 < args.max_seconds < math.inf or args.sample_rate_hz <= 0:
        raise DoorError("--max_seconds and --sample_rate_hz must be positive")
    if args.max_seconds * args.sample_rate_hz < 1:
        raise DoorError(f"--max_seconds {args.max_seconds:g} is less than one sample")
    if args.max_tokens < 3:  # two of them are special
        raise DoorError(f"--max_tokens {args.max_tokens} has no room for a word; 3 is the least")
    try:
        speeds = [float(part) for part in args.speeds.split(",")]
    except ValueError as error:
        raise DoorError(f"--speeds {args.speeds!r} is no list like 0.9,1,1.1") from error
    if not all(0.25 <= speed <= 4 for speed in speeds) or len(set(speeds)) < len(speeds):
        raise DoorError(f"--speeds {args.speeds}: each from 0.25 to 4, and none twice")
    args.speeds = speeds


def _work(args: argparse.Namespace) -> Work:
    """Lists the data set and loads what finds words for it."""
    dataset = published.READERS[args.dataset](args.root)
    words = args.words or _WORDS.get(args.dataset, "label")
    enrich = args.dataset != "folder" if args.enrich is None else args.enrich
    encoder = load_text_encoder(args.text_encoder, args.max_tokens)
    captioner = load_captioner(**captioner_options(args)) if words == "captioner" else None
    found = None
    if words != "label" or enrich:
        options = language_options(args)
        if words == "label" and options["properties"] == "bank":
            options["language_model"] = "none"  # labels are not parsed
        found = load_parser(**options)
    splits = collections.Counter(clip.split for clip in dataset.clips)
    plan = {
        "dataset": args.dataset,
        "files": dict(sorted(splits.items())),
        "clips_and_wordings_sha256": _contents(dataset),
        "sample_rate_hz": args.sample_rate_hz,
        "max_seconds": args.max_seconds,
        "speeds": args.speeds,
        "audio": args.audio,
        "words": {
            "from": words,
            "parser": found.id if found else None,
            "captioner": captioner.id if captioner else None,
            "windows": [args.caption_policy, args.caption_windows] if captioner else None,
        },
        "text_encoder": {
            "name": args.text_encoder,
            "id": encoder.id,
            "width": encoder.width,
            "max_tokens": encoder.max_tokens,
        },
        "clip_shards": {
            split: -(-count // preparing.FILES_PER_SHARD) for split, count in sorted(splits.items())
        },
        "schema": SCHEMA_VERSION,
    }
    return Work(args.out, dataset, plan, encoder, found, captioner, args.shard, args.num_shards)


def _contents(dataset: Dataset) -> str:
    """Hash of all that is listed, whether it is there or not, and of the wordings."""
    found = hashlib.sha256(json.dumps(TEMPLATES).encode())
    found.update(resources.files("opensep_jax").joinpath("assets/wordings.json").read_bytes())
    for clip in dataset.clips:
        known = dataclasses.asdict(clip)
        found.update(json.dumps({k: v for k, v in known.items() if k != "path"}).encode())
    return found.hexdigest()


def _check_plan(work: Work) -> None:
    """Refuses to add to records that were made with other options."""
    (work.out / "stages").mkdir(parents=True, exist_ok=True)
    file = work.out / "plan.json"
    if not file.exists():
        write_json(file, work.plan)
    before = read_json(file)
    wrong = [
        f"{k}: {before.get(k)} there, {work.plan.get(k)} now"
        for k in sorted({*before, *work.plan})
        if before.get(k) != work.plan.get(k)
    ]
    if wrong:
        raise DoorError(
            f"{work.out} holds records of other options ({'; '.join(wrong)}); use another --out"
        )
    report = coverage(work.dataset)
    preparing.write_if_new(
        work.out / "coverage.json", (json.dumps(report, indent=1) + "\n").encode()
    )
    if report["missing"]:
        logger.warning(
            "%d of %d listed files are missing; %s names them",
            len(report["missing"]), len(work.dataset.clips), work.out / "coverage.json",
        )  # fmt: skip
    for kind in work.dataset.notes:
        logger.warning("%d %s", len(report[kind]), kind.replace("_", " "))


def _report(work: Work) -> int:
    """Says what this process's share has rejected."""
    rejected = [
        item for stem, _ in work.tasks() for item in read_index(work.out / stem)["rejected"]
    ]
    for item in rejected[:_SHOWN_PROBLEMS]:
        logger.error("rejected: %s", item["why"])
    if len(rejected) > _SHOWN_PROBLEMS:
        logger.error("... and %d more; they are in the indexes", len(rejected) - _SHOWN_PROBLEMS)
    return EXIT_SOME_FAILED if rejected else EXIT_DONE


def _finish(work: Work, text_shards: int) -> None:
    """Writes `summary.json`, and last `dataset.json`."""
    out, plan = work.out, work.plan
    tasks = preparing.all_tasks(work.dataset, plan)
    names: collections.Counter[str] = collections.Counter()
    splits, details = {}, {}
    elsewhere: set[bytes] = set()
    for split in plan["clip_shards"]:
        own = (read_index(out / stem) for stem, _ in tasks if stem.startswith(f"clips-{split}-"))
        counted = summarise_split(own, names, elsewhere, plan["sample_rate_hz"])
        splits[split], details[split] = counted
        if details[split]["also_in_another_split"]:
            logger.warning(
                "%d clips of split %s are in another split, too, to the sample",
                details[split]["also_in_another_split"], split,
            )  # fmt: skip
    made = (read_msgpack(work.stage(stem, "cut")) for stem, _ in tasks)
    texts = [out / f"{shard_name('text', i, text_shards)}.index" for i in range(text_shards)]
    summary = summarise(details, names, made, [read_msgpack(file) for file in texts])
    info = {
        "schema": SCHEMA_VERSION,
        "version": __version__,
        **{key: plan[key] for key in ("dataset", "sample_rate_hz", "audio", "words")},
        "text_encoder": plan["text_encoder"],
        "text": {"shards": text_shards, "width": plan["text_encoder"]["width"]},
        "splits": splits,
        "families": work.dataset.families,
        "scenes": work.dataset.scenes,
    }
    preparing.remove_left_overs(work, text_shards)
    for name, content in (("summary", summary), ("dataset", info)):
        file = out / f"{name}.json"
        if not file.exists() or read_json(file) != content:
            write_json(file, content)
    for split, counts in splits.items():
        logger.info("%s: %s", split, ", ".join(f"{v} {k}" for k, v in counts.items()))
    prompts = ", ".join(f"{v} {k}" for k, v in summary["prompts"].items())
    logger.info("%d names; prompts: %s", len(names), prompts)


def cli() -> None:
    """Entry point of `opensep-prepare`."""
    sys.exit(run(main, parser(), (RecordError, ValueError, WeightsError)))


if __name__ == "__main__":
    cli()
