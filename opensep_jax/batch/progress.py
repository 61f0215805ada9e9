"""How far `infer` is: two bars for people, JSON lines for machines, and the manifest."""

import contextlib
import json
import time
from typing import TextIO

from tqdm import tqdm

from opensep_jax import __version__
from opensep_jax.batch.results import Manifest
from opensep_jax.batch.work import Work

_SOUND = "{desc:.32}: {percentage:3.0f}%|{bar:20}| {n:.0f}/{total_fmt} s of sound{postfix}"


class Progress:
    """Follows the inputs of one run; a context manager.

    The first bar counts inputs, with the time that is left; the second the seconds of the input
    that is being written, with how many of them are done in a second.
    """

    def __init__(self, inputs: int, manifest: Manifest, lines: TextIO | None = None):
        """Begins.

        Args:
            inputs: how many there are.
            manifest: gets a line for each.
            lines: where JSON lines go, if they are wanted.
        """
        self._manifest, self._lines, self._inputs = manifest, lines, inputs
        self._start, self._seconds, self._done = time.monotonic(), 0.0, 0
        self._closing = contextlib.ExitStack()
        self._files = self._closing.enter_context(
            tqdm(total=inputs, desc="inputs", unit="file", disable=None, position=0)
        )
        self._sound = self._closing.enter_context(
            tqdm(total=1, desc="sound", disable=None, position=1, leave=False, bar_format=_SOUND)
        )
        self._current: Work | None = None
        self._say("start", inputs=inputs, version=__version__)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def wrote(self, work: Work, samples: int) -> None:
        """So many samples per channel of an input are written."""
        seconds = samples / work.sample_rate_hz
        self._seconds += seconds
        if work is not self._current:
            self._current = work
            self._sound.total = work.length_s and round(work.length_s)  # `reset` keeps it for None
            self._sound.reset()
            self._sound.set_description_str(work.job.relative, refresh=False)
        self._sound.set_postfix_str(f"{self.real_time_factor:.1f}x real time", refresh=False)
        self._sound.update(seconds)

    def ended(self, work: Work, status: str, error: str | None = None) -> None:
        """An input is through: `ok`, `skipped` or `error`."""
        job = work.job
        self._manifest.add(str(job.path), job.relative, status, error)
        self._files.update()
        self._done += 1
        elapsed_s = time.monotonic() - self._start
        left_s = elapsed_s / self._done * (self._inputs - self._done)
        self._say(
            "input", input=str(job.path), output=job.relative, status=status, error=error,
            timings_s=work.watch.rounded(), done=self._done, inputs=self._inputs,
            eta_s=round(left_s, 1),
        )  # fmt: skip

    def end(self, padding: float) -> None:
        """All are through; `padding` is the share of the network's work that was padding."""
        counts = self._manifest.counts
        self._say(
            "end", manifest=str(self._manifest.path), counts=counts, padding=round(padding, 4)
        )

    @property
    def real_time_factor(self) -> float:
        """Seconds of sound that were written in a second."""
        return self._seconds / max(1e-9, time.monotonic() - self._start)

    def _say(self, event: str, **values: object) -> None:
        if self._lines is None:
            return
        line = {"event": event, **values, "elapsed_s": round(time.monotonic() - self._start, 3)}
        line["real_time_factor"] = round(self.real_time_factor, 3)
        print(json.dumps(line), file=self._lines, flush=True)
