"""Profiles of chosen steps, for TensorBoard's profile tab (`pip install xprof`)."""

import re
from pathlib import Path

import jax


def parse_steps(text: str) -> tuple[int, int]:
    """First and last step, counted from 1, of a text `A:B`.

    Raises:
        ValueError: if it is none.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f"{text!r} is not A:B with 1 <= A <= B")
    return first, last


class Profile:
    """Records what host and devices do in some steps under `<workdir>/plugins/profile`."""

    def __init__(self, workdir: Path, steps: tuple[int, int] | None):
        """Waits for the first of these steps.

        Args:
            workdir: of the run.
            steps: first and last one, counted from 1; None records nothing.
        """
        self._workdir, self._steps, self._running = workdir, steps, False

    def before(self, step: int) -> None:
        """To be called before a step is given to the devices."""
        if self._steps and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._workdir))
            self._running = True

    def after(self, step: int, result: jax.Array) -> None:
        """To be called when it has been; waits for the last one.

        Args:
            step: counted from 1.
            result: something that is there when the step is done.
        """
        if self._running and step == self._steps[1]:
            result.block_until_ready()
            self.close()

    def close(self) -> None:
        """Writes what was recorded of steps that are not all done."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
