"""Separates recordings into their sources, and a residual.

    python -m opensep_jax.infer mixes/ --out results
    python -m opensep_jax.infer mix.wav --out results --caption "A dog barks while a cello plays"
    python -m opensep_jax.infer mix.wav --out results --query "a dog barks" --query "a cello plays"

Without a query or a caption it listens: a captioner describes what it hears, a language model finds
the sources in the description. INPUT is a file, a folder (searched for sound), a glob, or a .jsonl
list of {"input", "queries"?, "caption"?, "not"?, "only"?, "max_sources"?, "min_confidence"?}, whose
relative paths start in the working directory or else in the list's folder, and whose values replace
those of the flags. Every input gets a folder in --out; what is done is skipped, so a killed run
goes on where it stopped. A folder that holds the result of another sound or of other options is an
error, unless --overwrite replaces it.
"""

import argparse
import contextlib
import errno
import logging
import sys
import tempfile
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from opensep_jax.api import Separator
from opensep_jax.batch import results
from opensep_jax.batch.dry_run import dry_run
from opensep_jax.batch.inputs import Job, Request, plan_jobs
from opensep_jax.batch.progress import Progress
from opensep_jax.batch.results import Manifest
from opensep_jax.batch.stages import DoneBefore, Stages
from opensep_jax.batch.work import Options
from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.cli import EXIT_DONE, EXIT_SOME_FAILED, DoorError, run
from opensep_jax.discovery import Discovery
from opensep_jax.flags import (
    add_captioner_flags,
    add_choice_flags,
    add_language_flags,
    add_writing_flags,
    captioner_options,
    hearing_options,
    language_options,
)
from opensep_jax.separation.stemfiles import Encoding
from opensep_jax.separation.stream import Event, separate_all
from opensep_jax.separator import MASK_RULES
from opensep_jax.signal.audio import AudioError
from opensep_jax.text.caption import load_captioner
from opensep_jax.text.parse import load_parser

logger = logging.getLogger("opensep_jax")

_CAPTIONS = 8  # captions that the language model reads at a time
# The system refuses further writing: no other input would fare better.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="opensep_jax.infer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("input", nargs="*", metavar="INPUT", help="file, folder, glob, .jsonl list")
    flags.add_argument("--out", type=Path, metavar="DIR", help="folder of the results")
    flags.add_argument(
        "--checkpoint", default="demo", help="demo (default), exported folder or training workdir"
    )
    flags.add_argument(
        "--text_encoder", help="where the checkpoint's text encoder is, if not where it says"
    )
    flags.add_argument(
        "--masks",
        default="limit",
        choices=MASK_RULES,
        help="limit (default): what no query claims stays in the residual; normalise: the queries "
        "name every source, nothing is left over",
    )
    flags.add_argument("--num_shards", type=int, default=1, help="processes that share the inputs")
    flags.add_argument("--shard", type=int, default=0, help="number of this process, from 0")
    flags.add_argument("--report", action="store_true", help="write DIR/index.html to listen to")
    flags.add_argument("--overwrite", action="store_true", help="separate again what is done")
    flags.add_argument(
        "--dry_run", action="store_true", help="only say what would be done, how long and how large"
    )
    flags.add_argument(
        "--log_json", action="store_true", help="a JSON line for each input on standard output"
    )
    add_choice_flags(flags)
    add_writing_flags(flags)
    add_captioner_flags(flags)
    add_language_flags(flags)
    flags.add_argument("--merge", type=Path, metavar="DIR", help="only join the shards' manifests")
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Separates this process's share of the inputs."""
    if args.merge:
        return EXIT_SOME_FAILED if results.merge(args.merge) else EXIT_DONE
    encoding, request = _check_flags(args)
    jobs = plan_jobs(args.input, request, args.out)
    mine = jobs[args.shard :: args.num_shards]
    options = Options(
        args.out, encoding, args.enrich, args.overwrite, args.min_energy_share, args.residual,
        args.merge_similarity, hearing_options(args),
    )  # fmt: skip
    if args.dry_run:
        return EXIT_SOME_FAILED if dry_run(mine, _separator(args), options) else EXIT_DONE
    _check_writable(args.out)
    stages = _load(args, options, [job for job in mine if not job.problem])
    manifest = Manifest(args.out, args.shard, args.num_shards)
    try:
        _separate(mine, stages, manifest, args)
    finally:
        manifest.close()
    if args.report:
        from opensep_jax.batch.report import write_report  # its drawing library is slow to import

        logger.info("open %s in a browser to listen and look", write_report(args.out))
    counts = manifest.counts
    logger.info("%s: %s", manifest.path, ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
    return EXIT_SOME_FAILED if counts.get("error") else EXIT_DONE


def _separator(args: argparse.Namespace) -> Separator:
    return Separator.from_pretrained(
        args.checkpoint, text_encoder=args.text_encoder, masks=args.masks
    )


def _load(args: argparse.Namespace, options: Options, jobs: list[Job]) -> Stages:
    """Everything that the inputs need, once."""
    separator = _separator(args)
    worded = [job for job in jobs if args.enrich or job.request.worded]
    if not worded:
        return Stages(separator, None, options)
    listens = any(job.request.listens for job in jobs)
    captioner = load_captioner(**captioner_options(args)) if listens else None
    # A batch costs the same however few captions are in it.
    words = load_parser(**language_options(args), batch=1 if len(worded) == 1 else _CAPTIONS)
    return Stages(separator, Discovery(captioner, words, args.merge_similarity), options)


def _separate(
    jobs: list[Job], stages: Stages, manifest: Manifest, args: argparse.Namespace
) -> None:
    """Separates inputs, an error in one of which does not stop the others."""
    engine, lines = stages.separator.engine, sys.stdout if args.log_json else None
    with (
        logging_redirect_tqdm(),
        Progress(len(jobs), manifest, lines) as progress,
        contextlib.closing(separate_all(stages.tasks(jobs, manifest.begin), engine)) as events,
    ):
        for event in events:
            if event.samples:
                progress.wrote(event.task.owner, event.samples)
            if event.ended:
                _note(event, progress, args)
        progress.end(engine.work.waste)


def _note(event: Event, progress: Progress, args: argparse.Namespace) -> None:
    """Says how an input has ended."""
    work, error = event.task.owner, event.error
    if error is None:
        progress.ended(work, "ok")
    elif isinstance(error, DoneBefore):
        progress.ended(work, "skipped")
    elif _stops_all(error):
        raise DoorError(f"{args.out}: {error}") from error
    else:
        message = _message(error, str(work.job.path))
        logger.error("%s", message, exc_info=error if args.debug else None)
        progress.ended(work, "error", message)


def _message(error: Exception, given: str) -> str:
    """What to say of an input's error; it names the input."""
    message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return message if given in message else f"{given}: {message}"


def _check_flags(args: argparse.Namespace) -> tuple[Encoding, Request]:
    """Refuses what cannot be meant; returns how to write, and what is wanted of inputs."""
    if not args.input or not args.out:
        raise DoorError("need at least one INPUT and --out DIR (or --merge DIR); see --help")
    if not 0 <= args.shard < args.num_shards:
        raise DoorError(f"--shard {args.shard} is not within --num_shards {args.num_shards}")
    for name in ("query", "not", "only"):
        if any(not text.strip() for text in getattr(args, name)):
            raise DoorError(f"--{name} may not be empty")
    if args.caption is not None and not args.caption.strip():
        raise DoorError("--caption may not be empty")
    request = Request(
        tuple(args.query), args.caption, tuple(getattr(args, "not")), tuple(args.only),
        args.max_sources, args.min_confidence,
    )  # fmt: skip
    return Encoding(args.format, args.subtype, args.clip), request


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".writable-"):
            pass
    except OSError as error:
        raise DoorError(f"--out {out} cannot be written: {error.strerror}") from error


def _stops_all(error: Exception) -> bool:
    """Whether nothing more can be written."""
    if isinstance(error, AudioError) and "disk full" in str(error):  # libsndfile gives no errno
        return error.__cause__ is not None
    cause = error.__cause__ or error
    return isinstance(cause, OSError) and cause.errno in _FATAL


def cli() -> None:
    """Entry point of `opensep-infer`."""
    sys.exit(run(main, parser(), (ValueError, WeightsError)))


if __name__ == "__main__":
    cli()
