"""Numbers of a running loop: speed, the device's metrics, and when to wait for them."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator

import jax
from tqdm import tqdm

from opensep_jax.training.board import Board
from opensep_jax.training.hardware import memory, utilisation

_IN_FLIGHT = 2  # steps given to the devices and not finished


class Timed:
    """An iterator that knows how long its user has waited for it."""

    def __init__(self, source: Iterator):
        """Wraps an iterator."""
        self._source, self._waited = source, 0.0

    def __next__(self) -> dict[str, jax.Array]:
        start = time.monotonic()
        item = next(self._source)
        self._waited += time.monotonic() - start
        return item

    def pop_wait(self) -> float:
        """Seconds waited since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


class Progress:
    """Writes the metrics of every n-th step once the next such step was given to the devices.

    So the devices are never idle for it. No more than two steps are in flight, which bounds the
    memory of waiting batches.

    Attributes:
        halted: a step that was not finite has been seen.
        step_flops: floating-point operations of one device in a step; None while unknown.
    """

    def __init__(
        self,
        board: Board,
        stream: Timed,
        *,
        first_step: int,
        steps: int,
        log_every_steps: int,
        clips_per_step: float,
        devices: int,
        visible: bool,
    ):
        """Starts the clock.

        Args:
            board: where the numbers go.
            stream: whose waiting time is reported.
            first_step: steps done before.
            steps: last step of the run.
            log_every_steps: n.
            clips_per_step: clips that are mixed in a step, on average.
            devices: that share them.
            visible: whether a terminal shows a bar.
        """
        self.halted, self.step_flops = False, None
        self._board, self._stream, self._steps = board, stream, steps
        self._every, self._clips_per_step, self._devices = log_every_steps, clips_per_step, devices
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", dynamic_ncols=True,
            disable=None if visible else True,
        )  # fmt: skip
        self._pending: tuple[int, dict, dict] | None = None
        self._in_flight: collections.deque[jax.Array] = collections.deque()
        self._logged, self._since = first_step, time.monotonic()

    def step(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Takes note of a step that was given to the devices.

        Args:
            done: its number, from 1.
            metrics: scalars still on the devices; `halted` among them.
        """
        self._bar.update()
        self._in_flight.append(metrics["halted"])
        if len(self._in_flight) > _IN_FLIGHT:
            self._in_flight.popleft().block_until_ready()
        if done % self._every and done != self._steps:
            return
        self.flush()
        now, steps = time.monotonic(), done - self._logged
        speed = steps / (now - self._since)
        clips_per_s = speed * self._clips_per_step
        rates = {
            "speed/steps_per_s": speed,
            "speed/clips_per_s": clips_per_s,
            "speed/clips_per_s_per_chip": clips_per_s / self._devices,
            "speed/data_wait_s": self._stream.pop_wait() / steps,
            **utilisation(self.step_flops, speed, jax.local_devices()[0].device_kind),
            **memory(jax.local_devices()),
        }
        self._pending, self._logged, self._since = (done, metrics, rates), done, now

    def flush(self) -> None:
        """Fetches and writes what was noted last; waits for that step."""
        if self._pending is None:
            return
        step, metrics, rates = self._pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.halted |= bool(values.pop("halted"))
        # NaN says that the batch had nothing of a kind.
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._board.scalars(step, values | rates)
        self._bar.set_postfix({"loss": f"{values.get('loss', math.nan):.3f}"})
        self._pending = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent within does not count as training."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def close(self) -> None:
        """Writes what is left and leaves the bar."""
        self.flush()
        self._bar.close()
