"""Signals of any length through an engine, many at a time, in little memory.

    reader thread     blocks of a signal -> the network's rate -> windows
    this thread       windows of any signals -> batches of one shape -> device
    writer thread     stems of windows -> joined -> the signal's rate -> sink

Each hands a few windows ahead to the next and then waits. Every signal sees the same arithmetic as
alone, so neither company nor order changes its stems.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from opensep_jax.separation.ahead import ahead
from opensep_jax.separation.engine import Engine, Processed, Row, Text
from opensep_jax.separation.stopwatch import Stopwatch
from opensep_jax.signal.resampling import Resampler
from opensep_jax.signal.streaming import Cutter, OverlapAdd, Window

_AHEAD = 4  # windows that are read, and batches that are computed, before they are asked for


class Signal(Protocol):
    """What is separated; `signal.audio.AudioReader` is one."""

    sample_rate_hz: int
    channels: int
    frames: int | None

    def blocks(self) -> Iterator[np.ndarray]:
        """Its samples in order, float32 [C, n], all finite."""


class Sink(Protocol):
    """What becomes of a signal; called by one thread at a time."""

    def heard(self, processed: Processed) -> None:
        """Takes what the network made of a window, before windows are joined."""

    def write(self, input_CT: np.ndarray, stems_SCT: np.ndarray) -> None:
        """Takes the next block of the input and of its stems."""

    def finish(self) -> None:
        """All is written."""

    def abort(self) -> None:
        """Nothing more comes, an error came between."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A signal to separate.

    Attributes:
        open: gives the signal, in a context.
        text: what to find in it; None if nothing: then all of it is residual.
        sink: gives the sink for it.
        owner: whatever the caller wants back with the events.
        watch: gets the time that is spent, as `read` and `separate`.
    """

    open: Callable[[], contextlib.AbstractContextManager[Signal]]
    text: Text | None
    sink: Callable[[Signal], Sink]
    owner: object = None
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)


class Event(NamedTuple):
    """Something happened to a task: samples per channel were written, and perhaps it ended."""

    task: Task
    samples: int
    ended: bool = False
    error: Exception | None = None


def separate_all(tasks: Iterable[Task], engine: Engine) -> Iterator[Event]:
    """Separates signals; an error in one does not stop the others.

    Args:
        tasks: taken one after the other, by the reader thread, as there is room.
        engine: what separates.

    Yields:
        Events in the order in which things happened; each task ends once.

    Raises:
        Exception: what `tasks` raises.
    """
    packer, tracks = _Packer(engine), _Tracks()
    with contextlib.ExitStack() as closing:
        closing.callback(tracks.abort)  # last, when no thread has to do with them any more
        writer = closing.enter_context(_Writer(tracks))
        read = _read(tasks, engine, tracks)
        for piece in closing.enter_context(ahead(read, _AHEAD + 2 * engine.batch)):
            if piece.window is None or piece.track.count == 0:
                writer.submit([piece], lambda: [None])
            else:
                for batch in packer.add(piece):
                    writer.submit(batch, _start(engine, batch))
            yield from writer.events(_AHEAD)
        for batch in packer.rest():
            writer.submit(batch, _start(engine, batch))
        yield from writer.events(0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
    """A window of a track and the input since the one before; or the error that ended it."""

    track: "_Track"
    window: Window | None = None
    input: tuple[np.ndarray, ...] = ()
    error: Exception | None = None

    @property
    def row(self) -> Row:
        return Row(self.window, self.track.task.text)


def _read(tasks: Iterable[Task], engine: Engine, tracks: "_Tracks") -> Iterator[_Piece]:
    """The pieces of all tasks."""
    for task in tasks:
        track = tracks.add(_Track(task, engine))
        try:
            with contextlib.ExitStack() as closing:
                with task.watch.timing("read"):
                    signal = closing.enter_context(task.open())
                track.begin(signal)
                yield from track.pieces(signal)
        except Exception as error:  # whatever is wrong with one must not stop the others
            yield _Piece(track, error=error)


def _start(engine: Engine, batch: list[_Piece]) -> Callable[[], list[Processed]]:
    """What waits for the results of a batch; it raises what the device could not begin with."""
    try:
        return engine.start([piece.row for piece in batch])
    except Exception as error:
        problem = error

    def failed() -> list[Processed]:
        raise problem

    return failed


class _Track:
    """A task on its way: what the reader makes of the signal, and the writer of the windows."""

    def __init__(self, task: Task, engine: Engine):
        self.task, self._engine = task, engine
        self.count = task.text.count if task.text else 0
        self.ended = False  # set by the writer
        self._sink: Sink | None = None

    def begin(self, signal: Signal) -> None:
        """Prepares for a signal that is open."""
        rate_hz, self._channels = self._engine.net.sample_rate_hz, signal.channels
        self._down = Resampler(signal.sample_rate_hz, rate_hz, signal.channels)
        self._up = Resampler(rate_hz, signal.sample_rate_hz, max(1, self.count) * signal.channels)
        self._add = OverlapAdd(self._engine.windows)
        self._held_CT = np.zeros((signal.channels, 0), np.float32)  # input without stems so far
        self._length = 0
        self._sink = self.task.sink(signal)

    def pieces(self, signal: Signal) -> Iterator[_Piece]:
        """The windows of the signal; without a text its blocks."""
        cutter, since = Cutter(self._engine.windows, signal.channels), []
        for block_CT in self._timed(signal.blocks()):
            if self.ended:
                return
            if not self.count:
                yield _Piece(self, Window(block_CT, 0), (block_CT,))
                continue
            since.append(block_CT)
            for window in self._timed(self._windows(cutter, block_CT)):
                yield _Piece(self, window, tuple(since))
                since = []
        if not self.count:
            yield _Piece(self, Window(block_CT[:, :0], 0, total=0))
            return
        for window in self._timed(self._windows(cutter, None)):
            yield _Piece(self, window, tuple(since))
            since = []

    def take(self, piece: _Piece, processed: Processed | None) -> Event:
        """Joins and writes a piece; never raises."""
        written, error = 0, piece.error
        try:
            if error is None:
                written = self._write(piece, processed)
        except Exception as problem:
            error = problem
        last = piece.window is not None and piece.window.total is not None
        self.ended = bool(error) or last
        if error is not None:
            self.abort()
        return Event(self.task, written, self.ended, error)

    def abort(self) -> None:
        """Gives up."""
        self.ended = True
        if self._sink is not None:
            self._sink.abort()

    def _write(self, piece: _Piece, processed: Processed | None) -> int:
        self._held_CT = np.concatenate([self._held_CT, *piece.input], axis=1)
        self._length += sum(part_CT.shape[1] for part_CT in piece.input)
        if processed is None:
            ready = self._held_CT.shape[1]
            stems_SCT = np.zeros((0, self._channels, ready), np.float32)
        else:
            self._sink.heard(processed)
            with self.task.watch.timing("separate"):
                stems_SCT = self._join(piece.window, processed.stems_SCT)
            ready = stems_SCT.shape[-1]
        if ready:
            self._sink.write(self._held_CT[:, :ready], stems_SCT)
            self._held_CT = self._held_CT[:, ready:]
        if piece.window.total is not None:
            self._sink.finish()
        return ready

    def _join(self, window: Window, stems_SCT: np.ndarray) -> np.ndarray:
        """What is finished of the stems, at the signal's rate."""
        joined_SCT = self._add.push(stems_SCT, window.start, window.total)
        flat = joined_SCT.reshape(self.count * self._channels, -1)
        parts = [self._up.push(flat)]
        if window.total is not None:
            parts.append(self._up.finish(self._length))
        return np.concatenate(parts, axis=1).reshape(self.count, self._channels, -1)

    def _windows(self, cutter: Cutter, block_CT: np.ndarray | None) -> Iterator[Window]:
        """The windows that a block of the signal completes; without one those that are left."""
        if block_CT is not None:
            yield from cutter.push(self._down.push(block_CT))
        else:
            yield from cutter.push(self._down.finish())
            yield cutter.finish()

    def _timed(self, items: Iterator) -> Iterator:
        """Adds the time in which items are made to `read`."""
        while True:
            with self.task.watch.timing("read"):
                item = next(items, None)
            if item is None:
                return
            yield item


class _Tracks:
    """The tracks that have not ended."""

    def __init__(self):
        self._open: dict[Task, _Track] = {}

    def add(self, track: _Track) -> _Track:
        self._open[track.task] = track
        return track

    def remove(self, task: Task) -> None:
        del self._open[task]

    def abort(self) -> None:
        """Gives all of them up."""
        for track in self._open.values():
            if not track.ended:
                track.abort()


class _Packer:
    """Collects pieces of one shape until they fill a batch; not too many of other shapes."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._waiting: dict[tuple[int, ...], list[_Piece]] = {}  # the oldest shape first

    def add(self, piece: _Piece) -> Iterator[list[_Piece]]:
        """Takes a piece; gives the batches that go now."""
        shape, most = self._engine.shape(piece.row), self._engine.batch
        self._waiting.setdefault(shape, []).append(piece)
        if len(self._waiting[shape]) == most:
            yield self._waiting.pop(shape)
        if sum(map(len, self._waiting.values())) > 4 * most:
            yield self._waiting.pop(next(iter(self._waiting)))

    def rest(self) -> Iterator[list[_Piece]]:
        """All that waits."""
        yield from self._waiting.values()


class _Writer:
    """The writer thread; a context manager."""

    def __init__(self, tracks: _Tracks):
        self._tracks = tracks
        self._pool = ThreadPoolExecutor(1, "writer")
        self._running: collections.deque[Future[list[Event]]] = collections.deque()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, pieces: list[_Piece], results: Callable[[], list]) -> None:
        """Has pieces written as soon as they are processed."""
        self._running.append(self._pool.submit(_deliver, pieces, results))

    def events(self, most: int) -> Iterator[Event]:
        """What has happened, waiting until at most `most` batches are under way."""
        while self._running and (len(self._running) > most or self._running[0].done()):
            for event in self._running.popleft().result():
                if event.ended:
                    self._tracks.remove(event.task)
                yield event


def _deliver(pieces: list[_Piece], results: Callable[[], list]) -> list[Event]:
    """Writes what a batch has become; pieces of tracks that have ended are left out."""
    start = time.monotonic()
    try:
        processed = results()
    except Exception as error:  # of the device, such as its memory
        pieces = [dataclasses.replace(piece, error=error) for piece in pieces]
        processed = [None] * len(pieces)
    share = (time.monotonic() - start) / len(pieces)
    events = []
    for piece, made in zip(pieces, processed, strict=True):
        if not piece.track.ended:
            if made is not None:
                piece.track.task.watch.add("separate", share)
            events.append(piece.track.take(piece, made))
    return events
