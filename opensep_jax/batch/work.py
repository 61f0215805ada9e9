"""An input of `infer` on its way through the stages, and what the user chose for all of them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from opensep_jax.batch.inputs import Job, Request
from opensep_jax.discovery import MERGE_SIMILARITY, MIN_ENERGY_SHARE, Found, Heard
from opensep_jax.separation.engine import Text
from opensep_jax.separation.stemfiles import Encoding
from opensep_jax.separation.stopwatch import Stopwatch
from opensep_jax.text.source import Source


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user chose for all inputs.

    Attributes:
        out: folder of the results.
        encoding: of the files.
        enrich: whether queries get acoustic properties.
        overwrite: whether results that are there are made again.
        min_energy_share: discovered sources below it stay in the residual.
        residual: whether the residual is written.
        merge_similarity: cosine from which on two names of a caption are one source.
        hearing: what else decides what a captioner hears, by the name of the flag.
    """

    out: Path
    encoding: Encoding
    enrich: bool = False
    overwrite: bool = False
    min_energy_share: float = MIN_ENERGY_SHARE
    residual: bool = True
    merge_similarity: float = MERGE_SIMILARITY
    hearing: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def least_share(self, request: Request) -> float:
        """Energy share below which sources of an input stay in the residual."""
        return self.min_energy_share if request.listens else 0.0

    def waits(self, request: Request) -> bool:
        """Whether an input must be known to its end before the first sample is written."""
        chosen = request.only or request.max_sources or request.min_confidence
        return bool(chosen or self.least_share(request) > 0) or self.encoding.rescales


@dataclasses.dataclass(eq=False)
class Work:
    """An input on its way.

    Attributes:
        job: what was given.
        identity: what its result depends on.
        watch: time spent by stage.
        heard: what will be captioned, or its caption; None if there are queries.
        found: its sources, where they come from a caption.
        sources: what is separated.
        suppressed: which of them are to be gone, as indices.
        text: their prompts, embedded; None for none.
        error: why it ends before it is separated.
        length_s: of the sound, once it is open and if its header says so.
        sample_rate_hz: of the sound, once it is open.
    """

    job: Job
    identity: dict = dataclasses.field(default_factory=dict)
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    heard: Heard | None = None
    found: Found | None = None
    sources: tuple[Source, ...] = ()
    suppressed: tuple[int, ...] = ()
    text: Text | None = None
    error: Exception | None = None
    length_s: float | None = None
    sample_rate_hz: int = 1

    @property
    def caption(self) -> str | None:
        """What was heard, or said to be."""
        return self.found.caption if self.found else self.job.request.caption
