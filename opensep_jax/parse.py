"""Finds the sources that captions name, with acoustic properties.

python -m opensep_jax.parse captions.csv --out sources.jsonl

CAPTIONS is a .txt file (a caption per line), a .csv file with a column `caption`, or a .jsonl file
of texts or of objects with "caption". --out gets a line per caption, in order: {"caption",
"sources": [{"name", "properties", "prompt"}], "step", "parser", "version"}. The step tells how the
names were found: the model's "free" answer held, its answer was "constrained" to the caption's
words, or the "rule" was used; "parser" is a hash of model, prompts and code. A killed run goes on
where it stopped; the line of a caption that cannot be parsed has an "error".
"""

import argparse
import collections
import csv
import dataclasses
import io
import json
import logging
import os
import sys
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from opensep_jax import __version__
from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.cli import EXIT_DONE, EXIT_SOME_FAILED, DoorError, run
from opensep_jax.flags import add_language_flags, language_options
from opensep_jax.text.parse import Parser, check_caption, load_parser

logger = logging.getLogger("opensep_jax")

SUFFIXES = (".txt", ".csv", ".jsonl")
_CHUNK = 64  # captions between two writes


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="opensep_jax.parse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("captions", type=Path, metavar="CAPTIONS", help=", ".join(SUFFIXES))
    flags.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl")
    add_language_flags(flags)
    flags.add_argument("--num_shards", type=int, default=1, help="processes that share the work")
    flags.add_argument(
        "--shard", type=int, default=0, help="number of this process, from 0: FILE-I-of-N.jsonl"
    )
    flags.add_argument("--overwrite", action="store_true", help="begin again")
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Parses this process's share of the captions."""
    if not 0 <= args.shard < args.num_shards:
        raise DoorError(f"--shard {args.shard} is not within --num_shards {args.num_shards}")
    options = language_options(args)
    captions = read_captions(args.captions)[args.shard :: args.num_shards]
    out = _shard_path(args.out, args.shard, args.num_shards)
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.overwrite:
        out.unlink(missing_ok=True)
    found = load_parser(**options)
    done = _recover(out, captions, found.id) if out.exists() else []
    rest = captions[len(done) :]
    counts = collections.Counter("error" if "error" in row else row["step"] for row in done)
    if done:
        logger.info("%s: %d of %d captions were done", out, len(done), len(captions))
    _parse_rest(found, rest, out, counts, len(done))
    logger.info("%s: %s", out, ", ".join(f"{n} {s}" for s, n in sorted(counts.items())) or "empty")
    return EXIT_SOME_FAILED if counts["error"] else EXIT_DONE


def _parse_rest(
    found: Parser, rest: list[str], out: Path, counts: collections.Counter, done: int
) -> None:
    """Appends a line per caption, some at a time."""
    with (
        out.open("a", encoding="utf-8") as stream,
        logging_redirect_tqdm(),
        tqdm(total=done + len(rest), initial=done, unit="caption", disable=None) as bar,
    ):
        for start in range(0, len(rest), _CHUNK):
            rows = parse_rows(found, rest[start : start + _CHUNK])
            for number, row in enumerate(rows, done + start + 1):
                counts["error" if "error" in row else row["step"]] += 1
                if "error" in row:
                    logger.error("caption %d: %s", number, row["error"])
                stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
            bar.update(len(rows))


def parse_rows(found: Parser, captions: list[str]) -> list[dict]:
    """A line per caption: its parse, or why there is none."""
    errors = {}
    for caption in captions:
        try:
            check_caption(caption)
        except ValueError as error:
            errors[caption] = str(error)
    parses = iter(found.parse([caption for caption in captions if caption not in errors]))
    rows = [
        {"caption": caption, "sources": [], "step": "rule", "error": errors[caption]}
        if caption in errors
        else dataclasses.asdict(next(parses))
        for caption in captions
    ]
    return [row | {"parser": found.id, "version": __version__} for row in rows]


def read_captions(path: Path) -> list[str]:
    """Captions of a .txt, .csv or .jsonl file in UTF-8.

    Raises:
        DoorError: the file is of another kind or damaged; the message names file and line.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DoorError(f"{path}: captions come as {', '.join(SUFFIXES)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DoorError(f"{path} is not UTF-8: {error}") from error
    if path.suffix.lower() == ".txt":
        return [line.strip() for line in text.split("\n") if line.strip()]
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if "caption" not in (rows.fieldnames or ()):
            raise DoorError(f"{path}: no column 'caption' among {rows.fieldnames}")
        return [row["caption"] or "" for row in rows]
    lines = enumerate(text.split("\n"), 1)
    return [_read_line(line, f"{path}:{number}") for number, line in lines if line.strip()]


def _read_line(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DoorError(f"{where}: not valid JSON: {error}") from error
    caption = row.get("caption") if isinstance(row, dict) else row
    if not isinstance(caption, str):
        raise DoorError(f'{where}: neither a text nor an object with "caption": a text')
    return caption


def _shard_path(out: Path, shard: int, num_shards: int) -> Path:
    if num_shards == 1:
        return out
    return out.with_name(f"{out.stem}-{shard}-of-{num_shards}{out.suffix}")


def _recover(out: Path, captions: list[str], parser_id: str) -> list[dict]:
    """Lines that an earlier run has finished; a last one that was cut short is removed."""
    rows: list[dict] = []
    whole = 0
    with out.open("rb") as stream:
        for line in stream:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
                complete = row is not None and {"caption", "step", "parser"} <= row.keys()
            except (ValueError, AttributeError):
                complete = False
            if not complete:
                break
            rows.append(row)
            whole += len(line)
        damaged = bool(stream.read(1))
    if damaged or [row["caption"] for row in rows] != captions[: len(rows)]:
        raise DoorError(
            f"{out} holds other lines than these captions give; --overwrite replaces it"
        )
    if others := {row["parser"] for row in rows} - {parser_id}:
        raise DoorError(
            f"{out} holds lines of the parser {min(others)}, this one is {parser_id}; "
            "--overwrite replaces it, another --out keeps it"
        )
    os.truncate(out, whole)
    return rows


def cli() -> None:
    """Entry point of `opensep-parse`."""
    sys.exit(run(main, parser(), (ValueError, WeightsError)))


if __name__ == "__main__":
    cli()
