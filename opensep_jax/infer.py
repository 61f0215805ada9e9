"""Separates recordings into their sources, and a residual.

    python -m opensep_jax.infer mixes/ --out results
    python -m opensep_jax.infer mix.wav --out results --caption "A dog barks while a cello plays"
    python -m opensep_jax.infer mix.wav --out results --query "a dog barks" --query "a cello plays"

Without a query or a caption it listens: a captioner describes what it hears, a language model finds
the sources in the description. INPUT is a file, a folder (searched for sound), a glob, or a .jsonl
list of
{"input", "queries"?, "caption"?}, whose relative paths start in the working directory or else in
the list's folder. Every input gets a folder in --out; what is done is skipped, so a killed run goes
on where it stopped. A folder that holds the result of another sound or of other options is an
error, unless --overwrite replaces it.
"""

import argparse
import errno
import functools
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from opensep_jax import results
from opensep_jax.api import Separator
from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.cli import EXIT_DONE, EXIT_SOME_FAILED, DoorError, run
from opensep_jax.discovery import Discovery
from opensep_jax.flags import (
    add_captioner_flags,
    add_language_flags,
    captioner_options,
    language_options,
)
from opensep_jax.inputs import Job, Texts, plan_jobs
from opensep_jax.results import CLIP_POLICIES, Encoding, Manifest
from opensep_jax.separator import MASK_RULES
from opensep_jax.signal.audio import AudioError
from opensep_jax.signal.write import WRITE_FORMATS
from opensep_jax.stages import Options, Stages, Work
from opensep_jax.text.caption import load_captioner
from opensep_jax.text.parse import load_parser

logger = logging.getLogger("opensep_jax")

_TOGETHER = 16  # inputs that are captioned and parsed at a time
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
        "--query", action="append", default=[], metavar="TEXT", help="a source; repeatable"
    )
    flags.add_argument(
        "--caption", metavar="TEXT", help="what is heard: its sources are found and separated"
    )
    flags.add_argument(
        "--enrich", action="store_true", help="add acoustic properties to queries before use"
    )
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
    formats = [suffix[1:] for suffix in WRITE_FORMATS]
    flags.add_argument("--format", default="wav", choices=formats, help="default wav")
    subtypes = ["FLOAT", "PCM_16", "PCM_24"]
    flags.add_argument("--subtype", choices=subtypes, help="default: FLOAT in wav, PCM_16 in flac")
    flags.add_argument(
        "--clip",
        default="clamp",
        choices=CLIP_POLICIES,
        help="beyond full scale, but in float WAV: cut off (default), or everything turned down",
    )
    flags.add_argument("--num_shards", type=int, default=1, help="processes that share the inputs")
    flags.add_argument("--shard", type=int, default=0, help="number of this process, from 0")
    flags.add_argument("--report", action="store_true", help="write DIR/index.html to listen to")
    flags.add_argument("--overwrite", action="store_true", help="separate again what is done")
    add_captioner_flags(flags)
    add_language_flags(flags)
    flags.add_argument("--merge", type=Path, metavar="DIR", help="only join the shards' manifests")
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Separates this process's share of the inputs."""
    if args.merge:
        return EXIT_SOME_FAILED if results.merge(args.merge) else EXIT_DONE
    encoding = _check_flags(args)
    jobs = plan_jobs(args.input, Texts(tuple(args.query), args.caption), args.out)
    _check_writable(args.out)
    mine = jobs[args.shard :: args.num_shards]
    stages = _load(args, encoding, [job for job in mine if not job.problem])
    manifest = Manifest(args.out, args.shard, args.num_shards)
    try:
        with (
            logging_redirect_tqdm(),
            tqdm(total=len(mine), desc="inputs", unit="file", disable=None) as bar,
        ):
            for start in range(0, len(mine), _TOGETHER):
                _separate(mine[start : start + _TOGETHER], stages, manifest, args, bar)
    finally:
        manifest.close()
    if args.report:
        from opensep_jax.report import write_report  # its drawing library is slow to import

        logger.info("open %s in a browser to listen and look", write_report(args.out))
    counts = manifest.counts
    logger.info("%s: %s", manifest.path, ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
    return EXIT_SOME_FAILED if counts.get("error") else EXIT_DONE


def _load(args: argparse.Namespace, encoding: Encoding, jobs: list[Job]) -> Stages:
    """Everything that the inputs need, once."""
    separator = Separator.from_pretrained(
        args.checkpoint, text_encoder=args.text_encoder, masks=args.masks
    )
    options = Options(args.out, encoding, args.enrich, args.overwrite, args.min_energy_share)
    worded = [job for job in jobs if args.enrich or not job.texts.queries]
    if not worded:
        return Stages(separator, None, options)
    listens = any(job.listens for job in jobs)
    captioner = load_captioner(**captioner_options(args)) if listens else None
    # A batch costs the same however few captions are in it.
    words = load_parser(**language_options(args), batch=1 if len(worded) == 1 else _CAPTIONS)
    return Stages(separator, Discovery(captioner, words, args.merge_similarity), options)


def _separate(
    jobs: list[Job], stages: Stages, manifest: Manifest, args: argparse.Namespace, bar: tqdm
) -> None:
    """Separates some inputs, of which those that need words are captioned and parsed together."""

    def attempt(job: Job, stage: Callable[[], object]) -> object:
        """Result of a stage of one input; None, and a line in the manifest, if it fails."""
        try:
            return stage()
        except Exception as error:  # whatever is wrong with one input must not stop the others
            if _stops_all(error):
                raise DoorError(f"{args.out}: {error}") from error
            message = _message(error, str(job.path))
            logger.error("%s", message, exc_info=args.debug)
            manifest.add(str(job.path), job.relative, "error", message)
            bar.update()
            return None

    def begin(job: Job) -> Work | str:
        if job.problem:
            raise AudioError(job.path, job.problem)
        return stages.begin(job) or "skipped"

    def heard(work: Work) -> bool:
        stages.listen(work)
        return True

    def done(work: Work) -> bool:
        stages.separate(work)
        return True

    works = []
    for job in jobs:
        work = attempt(job, functools.partial(begin, job))
        if work == "skipped":
            manifest.add(str(job.path), job.relative, "skipped")
            bar.update()
        elif work:
            works.append(work)
    bar.set_postfix_str("caption")
    works = [work for work in works if attempt(work.job, functools.partial(heard, work))]
    bar.set_postfix_str("parse")
    stages.describe(works)
    bar.set_postfix_str("separate")
    for work in works:
        if attempt(work.job, functools.partial(done, work)):
            manifest.add(str(work.job.path), work.job.relative, "ok")
            bar.update()


def _message(error: Exception, given: str) -> str:
    """What to say of an input's error; it names the input."""
    message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return message if given in message else f"{given}: {message}"


def _check_flags(args: argparse.Namespace) -> Encoding:
    """Refuses what cannot be meant; returns how to write."""
    if not args.input or not args.out:
        raise DoorError("need at least one INPUT and --out DIR (or --merge DIR); see --help")
    if not 0 <= args.shard < args.num_shards:
        raise DoorError(f"--shard {args.shard} is not within --num_shards {args.num_shards}")
    if any(not query.strip() for query in args.query):
        raise DoorError("--query may not be empty")
    if args.caption is not None and not args.caption.strip():
        raise DoorError("--caption may not be empty")
    allowed = WRITE_FORMATS[f".{args.format}"].subtypes
    if args.subtype and args.subtype not in allowed:
        raise DoorError(f"--format {args.format} cannot hold --subtype {args.subtype}: {allowed}")
    return Encoding(args.format, args.subtype or allowed[0], args.clip)


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
