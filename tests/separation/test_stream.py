"""Signals through an engine: streamed equals in memory, company changes nothing, errors stay."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator

import numpy as np
import pytest

from opensep_jax import Separator
from opensep_jax.separation import stream
from opensep_jax.separation.engine import Engine, Row
from opensep_jax.separation.stemfiles import residual_of
from opensep_jax.separation.stopwatch import Stopwatch
from opensep_jax.separation.stream import Event, Task, separate_all
from opensep_jax.signal.resampling import Resampler, resample
from opensep_jax.signal.streaming import OverlapAdd, Window
from tests.tiny_checkpoint import shared_checkpoint

pytestmark = pytest.mark.usefixtures("compile_once")
QUERIES = (["a dog barks", "cello"], ["bark", "the low cello"], ["soft dog"])


@functools.cache
def _engine(batch: int) -> Engine:
    return Separator.from_pretrained(shared_checkpoint(), batch=batch).engine


def _noise(channels: int, samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal((channels, samples))).astype(np.float32)


@dataclasses.dataclass
class Wave:
    """A signal in blocks of some size; one may be an error."""

    samples_CT: np.ndarray
    sample_rate_hz: int = 16_000
    block: int = 1234
    breaks_at: int | None = None

    @property
    def channels(self) -> int:
        return len(self.samples_CT)

    @property
    def frames(self) -> int:
        return self.samples_CT.shape[1]

    def blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, self.frames, self.block):
            if self.breaks_at is not None and start >= self.breaks_at:
                raise ValueError("broken off")
            yield self.samples_CT[:, start : start + self.block]


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self):
        self.blocks, self.windows, self.state = [], 0, "open"

    def heard(self, processed) -> None:
        self.windows += 1

    def write(self, input_CT: np.ndarray, stems_SCT: np.ndarray) -> None:
        self.blocks.append((input_CT, stems_SCT))

    def finish(self) -> None:
        self.state = "finished"

    def abort(self) -> None:
        self.state = "aborted"

    @property
    def stems(self) -> np.ndarray:
        return np.concatenate([stems for _, stems in self.blocks], axis=-1)

    @property
    def input(self) -> np.ndarray:
        return np.concatenate([part for part, _ in self.blocks], axis=-1)


def _task(engine: Engine, wave: Wave, queries: list[str]) -> tuple[Task, Kept]:
    kept = Kept()
    text = engine.embed(queries) if queries else None
    return Task(lambda: contextlib.nullcontext(wave), text, lambda _: kept, wave), kept


def _run(engine: Engine, *waves: tuple[Wave, list[str]]) -> tuple[list[Kept], list[Event]]:
    tasks = [_task(engine, *wave) for wave in waves]
    events = list(separate_all((task for task, _ in tasks), engine))
    return [kept for _, kept in tasks], events


@pytest.mark.parametrize("rate_hz, channels", [(16_000, 2), (44_100, 1)])
@pytest.mark.parametrize("block", [333, 10**6])
def test_streaming_equals_the_same_windows_in_memory(rate_hz: int, channels: int, block: int):
    """Resampled as a whole, cut, processed one by one, joined, resampled as a whole."""
    engine, input_CT = _engine(1), _noise(channels, 2 * rate_hz + 17)
    ((kept,), _) = _run(engine, (Wave(input_CT, rate_hz, block), QUERIES[0]))
    text, add = engine.embed(QUERIES[0]), OverlapAdd(engine.windows)
    wave_CT = resample(input_CT, rate_hz, 16_000)
    size, total, parts = engine.windows.window_samples, wave_CT.shape[1], []
    starts = engine.windows.starts(total)
    assert len(starts) > 4 and kept.windows == len(starts)
    for start in starts:
        window_CT = wave_CT[:, start : start + size]
        window_CT = np.pad(window_CT, ((0, 0), (0, size - window_CT.shape[1])))
        (processed,) = engine.start([Row(Window(window_CT, start, total), text)])()
        parts.append(add.push(processed.stems_SCT, start, total if start == starts[-1] else None))
    inner_SCT = np.concatenate(parts, axis=-1)
    want = [resample(stem_CT, 16_000, rate_hz, input_CT.shape[1]) for stem_CT in inner_SCT]
    np.testing.assert_allclose(kept.stems, want, atol=1e-7)
    np.testing.assert_array_equal(kept.input, input_CT)


def test_resampling_counts_as_reading(monkeypatch: pytest.MonkeyPatch):
    class Slow(Resampler):
        def push(self, samples_CT: np.ndarray) -> np.ndarray:
            time.sleep(0.02)
            return super().push(samples_CT)

    monkeypatch.setattr(stream, "Resampler", Slow)
    task, _ = _task(_engine(1), Wave(_noise(1, 12_340)), QUERIES[0])
    assert [event.error for event in separate_all([task], _engine(1)) if event.ended] == [None]
    assert task.watch.rounded()["read"] >= 10 * 0.02  # of ten blocks


def test_a_stopwatch_keeps_parts_of_a_millisecond():
    watch = Stopwatch()
    for _ in range(1000):
        watch.add("read", 0.0004)
    assert watch.rounded() == {"read": 0.4}


def test_company_and_order_change_no_bit():
    """Windows of several signals share batches of three; alone they fill one with copies."""
    engine = _engine(3)
    waves = [
        (Wave(_noise(1, 30_000, 1)), QUERIES[0]),
        (Wave(_noise(1, 25_000, 2)), QUERIES[1]),
        (Wave(_noise(2, 1000, 3), 22_050), QUERIES[0]),
        (Wave(_noise(1, 31_000, 4)), QUERIES[2]),
        (Wave(_noise(1, 9000, 5)), QUERIES[1]),
    ]
    together, events = _run(engine, *waves)
    assert sum(event.ended for event in events) == 5 and not any(e.error for e in events)
    for order in ([4, 1, 0, 3, 2], [2], [1]):
        again, _ = _run(engine, *(waves[i] for i in order))
        for i, kept in zip(order, again, strict=True):
            np.testing.assert_array_equal(kept.stems, together[i].stems)
    alone, _ = _run(_engine(1), waves[0])
    np.testing.assert_allclose(alone[0].stems, together[0].stems, atol=2e-6)


def test_batches_are_full_and_padding_is_little():
    engine = Separator.from_pretrained(shared_checkpoint(), batch=3).engine
    _run(engine, *((Wave(_noise(1, 30_000 + 64 * i, i)), QUERIES[i % 2]) for i in range(6)))
    assert 0 < engine.work.waste < 0.15
    assert engine.work.real < engine.work.computed


def test_an_error_in_one_signal_stops_no_other():
    engine = _engine(3)
    good, bad = Wave(_noise(1, 30_000, 1)), Wave(_noise(1, 90_000), breaks_at=60_000)
    kept, events = _run(engine, (bad, QUERIES[0]), (good, QUERIES[0]), (bad, QUERIES[1]))
    assert [part.state for part in kept] == ["aborted", "finished", "aborted"]
    ended = [event for event in events if event.ended]
    assert [str(e.error) for e in ended if e.task.owner is bad] == ["broken off"] * 2
    (want,), _ = _run(engine, (good, QUERIES[0]))
    np.testing.assert_array_equal(kept[1].stems, want.stems)


def test_an_error_in_writing_ends_the_signal(monkeypatch):
    def full(*_: object) -> None:
        raise OSError("full")

    engine = _engine(1)
    task, kept = _task(engine, Wave(_noise(1, 60_000)), QUERIES[0])
    monkeypatch.setattr(kept, "write", full)
    (event,) = [e for e in separate_all([task], engine) if e.ended]
    assert str(event.error) == "full" and kept.state == "aborted"


def test_an_error_of_the_device_ends_its_signals_alone(monkeypatch):
    engine, calls, real = _engine(1), [], _engine(1).start

    def start(rows: list[Row]):
        calls.append(rows)
        if len(calls) == 2:
            raise MemoryError("no room")
        return real(rows)

    monkeypatch.setattr(engine, "start", start)
    waves = [(Wave(_noise(1, 20_000, seed)), QUERIES[0]) for seed in range(2)]
    kept, events = _run(engine, *waves)
    assert [part.state for part in kept] == ["aborted", "finished"]
    assert [str(event.error) for event in events if event.ended] == ["no room", "None"]


def test_what_is_not_finished_is_given_up():
    engine = _engine(1)
    (first, one), (second, two) = (
        _task(engine, Wave(_noise(1, 200_000)), QUERIES[0]) for _ in range(2)
    )
    with contextlib.closing(separate_all([first, second], engine)) as events:
        next(events)
    assert one.state == "aborted" and two.state in ("open", "aborted")

    def failing() -> Iterator[Task]:
        yield first
        raise KeyError("no more tasks")

    with pytest.raises(KeyError, match="no more tasks"):
        list(separate_all(failing(), engine))


def test_nothing_to_find_is_all_residual():
    engine = _engine(1)
    (kept,), _ = _run(engine, (Wave(_noise(2, 5000)), []))
    assert kept.stems.shape == (0, 2, 5000) and kept.state == "finished"
    np.testing.assert_array_equal(residual_of(kept.input, kept.stems), _noise(2, 5000))
