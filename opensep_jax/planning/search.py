"""Batch, recomputation and mesh: which of them to try, and when to stop."""

import dataclasses
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One arrangement of a run.

    Attributes:
        batch_per_chip: examples of a chip in a step.
        remat: recompute activations in the backward pass.
        fsdp: chips that share the parameters.
    """

    batch_per_chip: int
    remat: bool
    fsdp: int


def explore(
    batch_per_chip: int,
    chips: int,
    chips_per_host: int,
    measure: Callable[[Candidate], dict],
    parts: int = 1,
) -> Iterator[tuple[Candidate, dict]]:
    """Measures arrangements: for each mesh and remat, batches by factors of two around the first.

    Upwards until the straight line through the last one says that the next does not fit, downwards
    until one fits.

    Args:
        batch_per_chip: where to begin.
        chips: of the slice; parameters are whole on each, or shared by a host's chips, or by all.
        chips_per_host: that one host feeds.
        measure: report of a candidate, with `fits` and, if so, `largest_batch_per_chip_estimate`.
        parts: that a chip's examples are divided into (accumulation), each whole examples.
    """
    for fsdp in sorted({1, chips_per_host, chips}):
        for remat in (False, True):
            candidate = Candidate(batch_per_chip, remat, fsdp)
            report = measure(candidate)
            yield candidate, report
            up = report["fits"]
            while batch := _next_batch(candidate.batch_per_chip, report, up, parts):
                candidate = dataclasses.replace(candidate, batch_per_chip=batch)
                report = measure(candidate)
                yield candidate, report


def _next_batch(batch: int, report: dict, up: bool, parts: int) -> int:
    """Examples of a chip to try next; 0 where the search ends."""
    if up != report["fits"]:
        return 0
    if up:
        return 2 * batch if 2 * batch <= report["largest_batch_per_chip_estimate"] else 0
    return batch // 2 // parts * parts
