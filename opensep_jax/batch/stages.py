"""What `infer` does with its inputs; those that need words share the work of finding them."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opensep_jax.api import Separator, checked_queries
from opensep_jax.batch import results
from opensep_jax.batch.identity import check_same, identity_of
from opensep_jax.batch.inputs import Job
from opensep_jax.batch.output import Output
from opensep_jax.batch.work import Options, Work
from opensep_jax.discovery import Discovery
from opensep_jax.separation.stream import Signal, Task
from opensep_jax.signal.audio import AudioError, AudioReader, check_readable
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
            _each(self._begin, works)
            _each(self._listen, works)
            _together(self._describe, [work for work in works if work.heard is not None])
            _each(self._ask, works)
            _together(self._embed, works)
            for work in works:
                yield self._task(work, begin)

    def _begin(self, work: Work) -> None:
        """Looks at what is there."""
        job = work.job
        if job.problem:
            raise AudioError(job.path, job.problem)
        if job.request.caption is not None:
            check_caption(job.request.caption)
        check_readable(job.path)
        work.identity = identity_of(job, self.separator, self.options, self.discovery)
        earlier = results.read_record(self.options.out / job.relative)
        if not earlier or self.options.overwrite:
            work.heard = job.request.caption if job.request.worded else None
            return
        check_same(earlier, work.identity, self.options.out / job.relative)
        raise DoneBefore

    def _listen(self, work: Work) -> None:
        """Hears an input of which nothing is known."""
        if work.job.request.listens:
            with work.watch.timing("caption"):
                work.heard = self.discovery.hear_file(work.job.path)

    def _describe(self, works: Sequence[Work]) -> None:
        """Captions inputs and finds the sources in their captions, all of them at once."""
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

    def _embed(self, works: Sequence[Work]) -> None:
        """Embeds the prompts, all of them at once."""
        prompts = [source.prompt for work in works for source in work.sources]
        self.separator.engine.encoder.encode(prompts)  # which remembers them
        for work in works:
            work.text = self.separator.text_of(work.sources)

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
            notes = self.separator.notes(signal.sample_rate_hz, work.text)
            return Output(work, self.options, signal, notes, self._agreements)

        return Task(opened, work.text, sink, work, work.watch)

    def _agreements(self, work: Work, stems_ST: list) -> list[float | None]:
        """How far stems sound like their names, where a captioner has listened to the input."""
        if not work.job.request.listens or not work.sources:
            return [None] * len(work.sources)
        names = [source.name for source in work.sources]
        rate_hz = self.separator.engine.net.sample_rate_hz
        with work.watch.timing("caption"):
            return self.discovery.agreements(names, stems_ST, rate_hz)


def _each(stage: Callable[[Work], None], works: Sequence[Work]) -> None:
    """A stage of inputs that have not failed, one after the other."""
    for work in works:
        try:
            if work.error is None:
                stage(work)
        except Exception as error:  # whatever is wrong with one input must not stop the others
            work.error = error


def _together(stage: Callable[[Sequence[Work]], None], works: Sequence[Work]) -> None:
    """A stage of all inputs that have not failed; where one spoils it, one after the other."""
    going = [work for work in works if work.error is None]
    try:
        if going:
            stage(going)
    except Exception:
        _each(lambda work: stage([work]), going)


@contextmanager
def _shared(works: Sequence[Work], stage: str) -> Iterator[None]:
    """Adds the time within to a stage of all works, in equal parts."""
    start = time.monotonic()
    yield
    for work in works:
        work.watch.add(stage, (time.monotonic() - start) / len(works))
