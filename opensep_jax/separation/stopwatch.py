"""Where the time of one input goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up time by stage; no two threads may time the same stage at once."""

    def __init__(self):
        """Nothing is timed yet."""
        self._seconds: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Adds time that was taken elsewhere."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Adds the time within."""
        start = time.monotonic()
        yield
        self.add(stage, time.monotonic() - start)

    def rounded(self) -> dict[str, float]:
        """Seconds by stage, to the millisecond."""
        return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}
