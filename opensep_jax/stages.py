"""What `infer` does with its inputs, stage by stage; inputs that need words share two of them."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from opensep_jax import __version__, results
from opensep_jax.api import SeparatedSource, Separation, Separator, drop_faint, nothing_found
from opensep_jax.discovery import Discovery, Found, Heard
from opensep_jax.inputs import Job
from opensep_jax.results import Encoding
from opensep_jax.signal.audio import Audio, read_audio
from opensep_jax.signal.write import write_audio
from opensep_jax.text.parse import check_caption

logger = logging.getLogger("opensep_jax")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        out: folder of the results.
        encoding: of the files.
        enrich: whether queries get acoustic properties.
        overwrite: whether results that are there are made again.
        min_energy_share: discovered sources below it stay in the residual.
    """

    out: Path
    encoding: Encoding
    enrich: bool
    overwrite: bool
    min_energy_share: float


@dataclasses.dataclass
class Work:
    """An input on its way.

    Attributes:
        job: what was given.
        identity: what its result depends on.
        seconds: time spent by stage.
        heard: what will be captioned, or its caption; None if there are queries.
        found: its sources, where they come from a caption.
    """

    job: Job
    identity: dict
    seconds: dict[str, float]
    heard: Heard | None = None
    found: Found | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time within to a stage."""
        start = time.monotonic()
        yield
        self.spend(stage, time.monotonic() - start)

    def spend(self, stage: str, seconds: float) -> None:
        """Adds time to a stage."""
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + seconds, 3)


class Stages:
    """Everything that is loaded once, and what it does to each input.

    `begin`, `listen` and `separate` take one input and raise what is wrong with it; `describe`
    takes many.
    """

    def __init__(self, separator: Separator, discovery: Discovery | None, options: Options):
        """Takes what was loaded; `discovery` is None if every input has queries to take as is."""
        self._separator, self._discovery, self._options = separator, discovery, options

    def begin(self, job: Job) -> Work | None:
        """The work to do for an input; None if its result is there."""
        if job.texts.caption is not None:
            check_caption(job.texts.caption)
        identity = self._identity(job)
        earlier = results.read_record(self._options.out / job.relative)
        if not earlier or self._options.overwrite:
            caption = None if job.texts.queries else job.texts.caption
            return Work(job, identity, {}, heard=caption)
        if differing := _differing(earlier, identity):
            raise ValueError(
                f"{self._options.out / job.relative} holds a result with other "
                f"{', '.join(differing)}; --overwrite replaces it, another --out keeps it"
            )
        return None

    def listen(self, work: Work) -> None:
        """Hears an input of which nothing is known."""
        if work.job.listens:
            with work.timed("read"):
                audio = read_audio(work.job.path)
            with work.timed("caption"):
                work.heard = self._discovery.hear(
                    audio.samples_CT, audio.sample_rate_hz, str(work.job.path)
                )

    def describe(self, works: Sequence[Work]) -> None:
        """Captions inputs and finds the sources in their captions, all of them at once."""
        works = [work for work in works if work.heard is not None]
        if not works:
            return
        with _shared(works, "caption"):
            captions = self._discovery.tell([work.heard for work in works])
        with _shared(works, "parse"):
            for work, found in zip(works, self._discovery.read(captions), strict=True):
                work.found, work.heard = found, None

    def separate(self, work: Work) -> None:
        """Separates an input and writes the result."""
        options = self._options
        with work.timed("read"):
            audio = read_audio(work.job.path)
        with work.timed("separate"):
            separation, dropped = self._separate(work, audio)
        with results.staged(options.out, work.job.relative) as folder:
            clipping: dict = {}
            names = results.stem_names(separation, options.encoding)
            with work.timed("write"):
                parts = results.encoded(audio.samples_CT, separation, options.encoding, clipping)
                for name, samples_CT in zip(names, parts, strict=True):
                    rate_hz, subtype = audio.sample_rate_hz, options.encoding.subtype
                    write_audio(folder / name, samples_CT, rate_hz, subtype)
            record = _record(work, audio, separation, names, clipping) | {
                "dropped": [_described(source) for source in dropped],
                **work.identity,
                "timings_s": work.seconds,
                "version": __version__,
            }
            results.write_record(folder, record)

    def _separate(self, work: Work, audio: Audio) -> tuple[Separation, tuple[SeparatedSource, ...]]:
        """The separation of an input, and the sources that are too faint in it."""
        samples_CT, rate_hz = audio.samples_CT, audio.sample_rate_hz
        if work.found is None:
            queries = work.job.texts.queries
            if self._options.enrich:
                queries = self._discovery.parser.describe(queries)
            return self._separator.separate(samples_CT, rate_hz, queries), ()
        if not work.found.sources:
            return nothing_found(samples_CT, rate_hz), ()
        separation = self._separator.separate(samples_CT, rate_hz, work.found.sources)
        if not work.job.listens:
            return separation, ()
        return drop_faint(separation, samples_CT, self._options.min_energy_share)

    def _identity(self, job: Job) -> dict:
        """What a result depends on."""
        with job.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        models, discovery = dict(self._separator.models), self._discovery
        options = {"queries": list(job.texts.queries), "masks": self._separator.masks}
        options |= {"caption": job.texts.caption, **dataclasses.asdict(self._options.encoding)}
        if self._options.enrich or not job.texts.queries:
            models["parser"] = {"id": discovery.parser.id}
            options["merge_similarity"] = discovery.merge_similarity
        if job.listens:
            models["captioner"] = {"id": discovery.captioner.id}
            options["min_energy_share"] = self._options.min_energy_share
        return {"input_sha256": digest, "models": models, "options": options}


@contextmanager
def _shared(works: Sequence[Work], stage: str) -> Iterator[None]:
    """Adds the time within to a stage of all works, in equal parts."""
    start = time.monotonic()
    yield
    for work in works:
        work.spend(stage, (time.monotonic() - start) / len(works))


def _record(
    work: Work, audio: Audio, separation: Separation, names: list[str], clipping: dict
) -> dict:
    """What `separation.json` says of the input and its stems."""
    channels, length = audio.samples_CT.shape
    notes = list(separation.notes)
    if clipping["samples"]:
        notes.append(f"{clipping['samples']} samples were beyond full scale and were cut off")
    if clipping["gain"] != 1:
        notes.append(f"stems and residual sum to the input times {clipping['gain']:.6g}")
    for note in notes:
        logger.info("%s: %s", work.job.path, note)
    return {
        "input": str(work.job.path),
        "sample_rate_hz": audio.sample_rate_hz,
        "channels": channels,
        "seconds": length / audio.sample_rate_hz,
        "caption": work.found.caption if work.found else work.job.texts.caption,
        "sources": [
            _described(source) | {"file": name}
            for source, name in zip(separation.sources, names, strict=False)
        ],
        "merged": [list(pair) for pair in work.found.merged] if work.found else [],
        "residual": {"file": names[-1]},
        "notes": notes,
        "clipping": clipping,
    }


def _described(source: SeparatedSource) -> dict:
    return dataclasses.asdict(source)


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
