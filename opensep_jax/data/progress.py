"""How far a stage of `prepare` is."""

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger("opensep_jax")

_LINE_EVERY_S = 30.0  # where no terminal shows a bar


class Progress:
    """A bar on a terminal, else a line now and then; and a line at the end."""

    def __init__(self, name: str, unit: str, total: int):
        """Takes the stage's name and what it counts."""
        self._name, self._unit, self._done, self._began = name, unit, 0, time.monotonic()
        self._bar = tqdm(total=total, desc=name, unit=f" {unit}", disable=None)
        self._skipped, self._total, self._said = 0, total, self._began

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        self._bar.close()
        if kind is None and self._total:
            before = f", {self._skipped} were there" if self._skipped else ""
            logger.info("%s: %s%s", self._name, self._rate(), before)

    def skip(self, count: int) -> None:
        """Counts what was done before."""
        self._skipped += count
        self._bar.update(count)

    def add(self, count: int) -> None:
        """Counts what is done now."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if not sys.stderr.isatty() and now - self._said > _LINE_EVERY_S:
            self._said = now
            left = self._total - self._done - self._skipped
            left_s = left * (now - self._began) / max(self._done, 1)
            logger.info("%s: %s of %d, %.0f s left", self._name, self._rate(), self._total, left_s)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        return f"{self._done} {self._unit} in {seconds:.1f} s, {self._done / seconds:.1f}/s"
