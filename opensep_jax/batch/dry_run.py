"""What a run of `infer` would do, how long it would take and how much room it needs."""

import dataclasses
import resource
import sys
import time
from collections.abc import Sequence

import numpy as np

from opensep_jax import __version__
from opensep_jax.api import Separator
from opensep_jax.batch import results
from opensep_jax.batch.identity import check_same, identity_of
from opensep_jax.batch.inputs import Job
from opensep_jax.batch.work import Options
from opensep_jax.separation.engine import Row
from opensep_jax.signal.audio import AudioError, AudioInfo, audio_info
from opensep_jax.signal.streaming import Window

_FOUND = 3  # sources that are presumed of an input that nobody has described
_ROUNDS = 3  # windows that are timed
_BYTES = {"PCM_16": 2, "PCM_24": 3}  # of a sample; lossy formats take less than the four of FLOAT


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one input: windows, prompts of each, bytes of its files, and those it needs meanwhile."""

    windows: int
    prompts: int
    output_bytes: int
    spool_bytes: int


def dry_run(jobs: Sequence[Job], separator: Separator, options: Options) -> int:
    """Prints a line for each input and a summary.

    The time is that of a window of the separator on this machine, measured now; what listening and
    parsing take is not in it. The memory is what this process has needed for that window: a run
    needs no more however long the inputs are, captioner and language model apart. Neither is
    loaded, so results that others have made count as done.

    Returns:
        How many inputs would fail, as far as that can be told.
    """
    estimates, failed, seconds, worded = [], 0, 0.0, False
    for job in jobs:
        try:
            if job.problem:
                raise AudioError(job.path, job.problem)
            info = audio_info(job.path)
            earlier = not options.overwrite and results.read_record(options.out / job.relative)
            if earlier:
                identity = identity_of(job, separator, options, None)
                check_same(earlier, identity, options.out / job.relative)
        except (ValueError, OSError) as error:
            failed += 1
            _say(f"error    {error}")
            continue
        if earlier:
            _say(f"done     {job.path}")
            continue
        estimate = _estimate(job, info, separator, options)
        estimates.append(estimate)
        seconds += info.seconds
        worded |= job.request.worded or (options.enrich and bool(job.request.queries))
        _say(
            f"to do    {job.path}: {info.seconds:.1f} s, {info.channels} channel(s), "
            f"{info.sample_rate_hz} Hz, {estimate.windows} windows, {estimate.prompts} prompts"
        )
    window_s = {n: _window_s(separator, n) for n in {e.prompts for e in estimates}}
    total_s = sum(e.windows * window_s[e.prompts] for e in estimates)
    # An input's spool is gone when its files are written.
    disk = sum(e.output_bytes for e in estimates)
    disk += max((e.spool_bytes for e in estimates), default=0)
    speed = f" ({seconds / total_s:.1f}x real time)" if total_s else ""
    besides = ", and what captioner and language model need" if worded else ""
    presumed = f", if {_FOUND} sources are in each" if worded else ""
    _say(f"{len(estimates)} inputs, {seconds / 60:.1f} min of sound, {failed} errors")
    _say(f"time     about {total_s / 60:.1f} min on this machine{speed}{besides}{presumed}")
    _say(f"memory   about {_peak_bytes() / 2**30:.2f} GiB{besides}")
    _say(f"disk     about {disk / 2**30:.3f} GiB in {options.out}{presumed}")
    _say(f"version  opensep_jax {__version__}")
    return failed


def _say(line: str) -> None:
    """Prints; what the terminal cannot show, such as names that are no text, is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def _estimate(job: Job, info: AudioInfo, separator: Separator, options: Options) -> Estimate:
    rate_hz, request = separator.engine.net.sample_rate_hz, job.request
    samples = -(-info.frames * rate_hz // info.sample_rate_hz)
    asked = len(request.queries) or (_FOUND if request.worded else 0)
    prompts = asked + len(request.suppressed)
    files = prompts + options.residual + bool(request.suppressed)
    size = info.frames * info.channels
    return Estimate(
        len(separator.engine.windows.starts(samples)),
        prompts,
        files * size * _BYTES.get(options.encoding.subtype, 4),
        4 * (1 + prompts) * size if options.waits(request) else 0,
    )


def _window_s(separator: Separator, prompts: int) -> float:
    """Seconds that the separator takes for a window of noise."""
    engine = separator.engine
    samples = engine.windows.window_samples
    noise_CT = np.random.default_rng(0).standard_normal((1, samples)).astype(np.float32)
    text = engine.embed([f"source {i}" for i in range(prompts)])
    rows = [Row(Window(noise_CT, 0, samples), text)] * engine.batch
    engine.start(rows)()  # compiles
    start = time.monotonic()
    for _ in range(_ROUNDS):
        engine.start(rows)()
    return (time.monotonic() - start) / _ROUNDS / engine.batch


def _peak_bytes() -> int:
    """Most memory that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
