"""What `infer` does with its inputs; those that need words share the work of finding them."""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opensep_jax.api import Separator, checked_queries
from opensep_jax.batch import results
from opensep_jax.batch.inputs import Job
from opensep_jax.batch.output import Output
from opensep_jax.batch.work import Options, Work
from opensep_jax.discovery import Discovery
from opensep_jax.separation.stream import Signal, Task
from opensep_jax.signal.audio import AudioError, AudioReader
from opensep_jax.text.match import means
from opensep_jax.text.parse import check_caption

# Inputs whose words are found and embedded at a time; few at first, as the others wait for them.
_TOGETHER = (4, 8, 16)


class DoneBefore(Exception):
    """The result of an input is there."""


class Stages:
    """Everything that is loaded once, and what it makes of inputs.

    Attributes:
        separator: the separator.
        discovery: what finds sources; None if every input has queries to take as they are.
        options: what the user chose.
    """

    def __init__(self, separator: Separator, discovery: Discovery | None, options: Options):
        """Takes what was loaded."""
        self.separator, self.discovery, self.options = separator, discovery, options

    def tasks(self, jobs: Sequence[Job], begin: Callable[[str, str], None]) -> Iterator[Task]:
        """Inputs as tasks whose owners are `Work`.

        What is wrong with an input, or that it is done, is raised when its task is opened. `begin`
        is told the input and its output folder before that is made.
        """
        sizes, left = itertools.chain(_TOGETHER, itertools.repeat(_TOGETHER[-1])), iter(jobs)
        while works := [Work(job) for job in itertools.islice(left, next(sizes))]:
            for work in works:
                self._attempt(self._begin, work)
            for work in works:
                self._attempt(self._listen, work)
            self._describe([work for work in works if work.heard is not None and not work.error])
            for work in works:
                self._attempt(self._ask, work)
            going = [work for work in works if not work.error]
            prompts = [source.prompt for work in going for source in work.sources]
            self.separator.engine.encoder.encode(prompts)  # all at once; it remembers them
            for work in works:
                yield self._task(work, begin)

    def _attempt(self, stage: Callable[[Work], None], work: Work) -> None:
        """A stage of one input, unless it has failed."""
        try:
            if work.error is None:
                stage(work)
        except Exception as error:  # whatever is wrong with one input must not stop the others
            work.error = error

    def _begin(self, work: Work) -> None:
        """Looks at what is there."""
        job = work.job
        if job.problem:
            raise AudioError(job.path, job.problem)
        if job.request.caption is not None:
            check_caption(job.request.caption)
        work.identity = self._identity(job)
        earlier = results.read_record(self.options.out / job.relative)
        if not earlier or self.options.overwrite:
            work.heard = job.request.caption if job.request.worded else None
            return
        if differing := _differing(earlier, work.identity):
            raise ValueError(
                f"{self.options.out / job.relative} holds a result with other "
                f"{', '.join(differing)}; --overwrite replaces it, another --out keeps it"
            )
        raise DoneBefore

    def _listen(self, work: Work) -> None:
        """Hears an input of which nothing is known."""
        if work.job.request.listens:
            with work.timed("caption"):
                work.heard = self.discovery.hear_file(work.job.path)

    def _describe(self, works: Sequence[Work]) -> None:
        """Captions inputs and finds the sources in their captions, all of them at once."""
        if not works:
            return
        with _shared(works, "caption"):
            captions = self.discovery.tell([work.heard for work in works])
        with _shared(works, "parse"):
            for work, found in zip(works, self.discovery.read(captions), strict=True):
                work.found, work.heard = found, None

    def _ask(self, work: Work) -> None:
        """Decides what is separated."""
        request = work.job.request
        if work.found is not None:
            sources = work.found.sources
        elif request.queries:
            sources = checked_queries(request.queries)
            if self.options.enrich:
                sources = tuple(self.discovery.parser.describe(request.queries))
        else:
            sources = ()
        gone = request.suppressed
        new = [text for text in gone if not any(means(text, s.name) for s in sources)]
        sources += checked_queries(new) if new else ()
        out = [i for i, s in enumerate(sources) if any(means(text, s.name) for text in gone)]
        work.sources, work.suppressed = sources, tuple(out)

    def _task(self, work: Work, begin: Callable[[str, str], None]) -> Task:
        """The work as a task."""

        @contextmanager
        def opened() -> Iterator[AudioReader]:
            if work.error is not None:
                raise work.error
            with AudioReader(work.job.path) as reader:
                work.sample_rate_hz = reader.sample_rate_hz
                work.length_s = reader.frames and reader.frames / reader.sample_rate_hz
                yield reader

        def sink(signal: Signal) -> Output:
            begin(str(work.job.path), work.job.relative)
            notes = self.separator.notes(signal.sample_rate_hz, text)
            return Output(work, self.options, signal, notes, self._agreements)

        text = None if work.error else self.separator.text_of(work.sources)
        return Task(opened, text, sink, work.seconds, work)

    def _agreements(self, work: Work, stems_ST: list) -> list[float | None]:
        """How far stems sound like their names, where a captioner has listened to the input."""
        if not work.job.request.listens or not work.sources:
            return [None] * len(work.sources)
        names = [source.name for source in work.sources]
        rate_hz = self.separator.engine.net.sample_rate_hz
        with work.timed("caption"):
            return self.discovery.agreements(names, stems_ST, rate_hz)

    def _identity(self, job: Job) -> dict:
        """What a result depends on; options that change nothing are left out."""
        with job.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        models, request, discovery = dict(self.separator.models), job.request, self.discovery
        options = {"queries": list(request.queries), "masks": self.separator.engine.masks}
        options |= {"caption": request.caption, **dataclasses.asdict(self.options.encoding)}
        chosen = {
            "not": list(request.suppressed),
            "only": list(request.only),
            "max_sources": request.max_sources,
            "min_confidence": request.min_confidence,
            "no_residual": not self.options.residual,
        }
        options |= {key: value for key, value in chosen.items() if value}
        if request.worded or (self.options.enrich and request.queries):
            models["parser"] = {"id": discovery.parser.id}
            options["merge_similarity"] = discovery.merge_similarity
        if request.listens:
            models["captioner"] = {"id": discovery.captioner.id}
            options["min_energy_share"] = self.options.min_energy_share
        return {"input_sha256": digest, "models": models, "options": options}


@contextmanager
def _shared(works: Sequence[Work], stage: str) -> Iterator[None]:
    """Adds the time within to a stage of all works, in equal parts."""
    start = time.monotonic()
    yield
    for work in works:
        work.spend(stage, (time.monotonic() - start) / len(works))


def _differing(record: dict, identity: dict) -> list[str]:
    """What a result was made with and is not wanted now."""
    differing = [] if record.get("input_sha256") == identity["input_sha256"] else ["input"]
    models = identity["models"]
    for network in sorted({*models, *record.get("models", {})}):  # where weights lie is no matter
        there, wanted = (x.get(network, {}).get("id") for x in (record.get("models", {}), models))
        if there != wanted:
            differing.append(network)
    before, now = record.get("options", {}), identity["options"]
    return differing + [key for key in {**now, **before} if before.get(key) != now.get(key)]
