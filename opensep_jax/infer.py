"""Separates files into the sounds that queries or a caption name, and a residual.

    python -m opensep_jax.infer mixes/ --out results --query "a dog barks" --query "a cello plays"
    python -m opensep_jax.infer mix.wav --out results --caption "A dog barks while a cello plays"

INPUT is a file, a folder (searched for sound), a glob, or a .jsonl list of
{"input", "queries"?, "caption"?}, whose relative paths start in the working directory or else in
the list's folder. Every input gets a folder in --out; what is done is skipped, so a killed run goes
on where it stopped. A folder that holds the result of another sound or of other options is an
error, unless --overwrite replaces it.
"""

import argparse
import dataclasses
import errno
import hashlib
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from opensep_jax import __version__, results
from opensep_jax.api import Separation, Separator
from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.cli import EXIT_DONE, EXIT_SOME_FAILED, DoorError, run
from opensep_jax.flags import add_language_flags, language_options
from opensep_jax.inputs import NO_QUERIES, Job, Texts, plan_jobs
from opensep_jax.results import CLIP_POLICIES, Encoding, Manifest
from opensep_jax.separator import MASK_RULES
from opensep_jax.signal.audio import Audio, AudioError, read_audio
from opensep_jax.signal.write import WRITE_FORMATS, write_audio
from opensep_jax.text.parse import Parser, load_parser
from opensep_jax.text.source import Source

logger = logging.getLogger("opensep_jax")

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
    if all(job.problem for job in jobs) and any(job.problem == NO_QUERIES for job in jobs):
        raise DoorError(NO_QUERIES)
    _check_writable(args.out)
    separator = Separator.from_checkpoint(
        args.checkpoint, text_encoder=args.text_encoder, masks=args.masks
    )
    mine = jobs[args.shard :: args.num_shards]
    setup = _Setup(separator, _load_parser(args, mine), encoding, args.out, args.enrich)
    manifest = Manifest(args.out, args.shard, args.num_shards)
    try:
        with logging_redirect_tqdm():
            for job in tqdm(mine, "inputs", unit="file", disable=None):
                _do(job, setup, manifest, args)
    finally:
        manifest.close()
    if args.report:
        from opensep_jax.report import write_report  # its drawing library is slow to import

        logger.info("open %s in a browser to listen and look", write_report(args.out))
    counts = manifest.counts
    logger.info("%s: %s", manifest.path, ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))
    return EXIT_SOME_FAILED if counts.get("error") else EXIT_DONE


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What is the same for all inputs; `parser` only where captions or `enrich` need one."""

    separator: Separator
    parser: Parser | None
    encoding: Encoding
    out: Path
    enrich: bool

    def reads(self, texts: Texts) -> bool:
        """Whether the prompts of an input come from the parser."""
        return self.enrich or not texts.queries

    def queries(self, texts: Texts) -> Sequence[str | Source]:
        """What to separate of an input."""
        if not self.reads(texts):
            return texts.queries
        if texts.queries:
            return self.parser.describe(texts.queries)
        return self.parser.parse([texts.caption])[0].sources


def _load_parser(args: argparse.Namespace, jobs: list[Job]) -> Parser | None:
    asked = [job.texts for job in jobs if not job.problem]
    if args.enrich or any(not texts.queries for texts in asked):
        return load_parser(**language_options(args), batch=1)  # inputs come one at a time
    return None


def _do(job: Job, setup: _Setup, manifest: Manifest, args: argparse.Namespace) -> None:
    """Separates one input or says why not; only what would stop every other one is raised."""
    given = str(job.path)
    try:
        if job.problem:
            raise AudioError(given, job.problem)
        status = _separate(job, setup, args.overwrite)
    except Exception as error:  # whatever is wrong with one input must not stop the others
        if _stops_all(error):
            raise DoorError(f"{args.out}: {error}") from error
        message = (
            str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        )
        message = message if given in message else f"{given}: {message}"
        logger.error("%s", message, exc_info=args.debug)
        manifest.add(given, job.relative, "error", message)
    else:
        manifest.add(given, job.relative, status)


def _separate(job: Job, setup: _Setup, overwrite: bool) -> str:
    """Status `ok`, or `skipped` if the result is there."""
    out, encoding = setup.out, setup.encoding
    earlier = results.read_record(out / job.relative)
    if earlier and not overwrite:
        differing = _differing(earlier, _identity(job, setup))
        if not differing:
            return "skipped"
        raise ValueError(
            f"{out / job.relative} holds a result with other {', '.join(differing)}; "
            "--overwrite replaces it, another --out keeps it"
        )
    clock = _Clock()
    audio = read_audio(job.path)
    identity = _identity(job, setup)
    clock.lap("read")
    queries = setup.queries(job.texts)
    if setup.reads(job.texts):
        clock.lap("parse")
    separation = setup.separator.separate(audio.samples_CT, audio.sample_rate_hz, queries)
    clock.lap("separate")
    with results.staged(out, job.relative) as folder:
        clipping: dict = {}
        names = results.stem_names(separation, encoding)
        parts = results.encoded(audio.samples_CT, separation, encoding, clipping)
        for name, samples_CT in zip(names, parts, strict=True):
            write_audio(folder / name, samples_CT, audio.sample_rate_hz, encoding.subtype)
        clock.lap("write")
        record = _record(job, audio, separation, names, identity, clipping)
        results.write_record(folder, {**record, "timings_s": clock.laps, "version": __version__})
    return "ok"


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._since, 3)
        self._since = now


def _record(
    job: Job,
    audio: Audio,
    separation: Separation,
    names: list[str],
    identity: dict,
    clipping: dict,
) -> dict:
    """Content of `separation.json`, but for times and version."""
    channels, length = audio.samples_CT.shape
    notes = list(separation.notes)
    if clipping["samples"]:
        notes.append(f"{clipping['samples']} samples were beyond full scale and were cut off")
    if clipping["gain"] != 1:
        notes.append(f"stems and residual sum to the input times {clipping['gain']:.6g}")
    for note in notes:
        logger.info("%s: %s", job.path, note)
    return {
        "input": str(job.path),
        "sample_rate_hz": audio.sample_rate_hz,
        "channels": channels,
        "seconds": length / audio.sample_rate_hz,
        "caption": job.texts.caption,
        "sources": [
            {
                "name": source.name,
                "prompt": source.prompt,
                "properties": source.properties,
                "file": name,
                "energy_share": source.energy_share,
            }
            for source, name in zip(separation.sources, names, strict=False)
        ],
        "residual": {"file": names[-1]},
        "notes": notes,
        "clipping": clipping,
        **identity,
    }


def _identity(job: Job, setup: _Setup) -> dict:
    """What a result depends on."""
    with job.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    models = setup.separator.models
    options = {"queries": list(job.texts.queries), "masks": setup.separator.masks}
    options |= {"caption": job.texts.caption, **dataclasses.asdict(setup.encoding)}
    if setup.reads(job.texts):
        models = models | {"parser": {"id": setup.parser.id}}
    return {"input_sha256": digest, "models": models, "options": options}


def _differing(record: dict, identity: dict) -> list[str]:
    """What a result was made with and is not wanted now."""
    differing = [] if record.get("input_sha256") == identity["input_sha256"] else ["input"]
    models = identity["models"]
    for network in sorted({*models, *record.get("models", {})}):  # where weights lie is no matter
        there, wanted = (x.get(network, {}).get("id") for x in (record.get("models", {}), models))
        if there != wanted:
            differing.append(network)
    before = record.get("options", {})
    return differing + [k for k, value in identity["options"].items() if before.get(k) != value]


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
