"""When numbers are fetched, and what is made of them."""

import json
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.training.board import Board
from opensep_jax.training.progress import Progress, Timed


def _metrics(loss: float, halted: bool = False) -> dict:
    return {"loss": jnp.float32(loss), "pair": jnp.float32(np.nan), "halted": jnp.array(halted)}


def _lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def progress(tmp_path: Path):
    board = Board(tmp_path)
    progress = Progress(
        board, Timed(iter([])), first_step=4, steps=11, log_every_steps=3, clips_per_step=32.0,
        devices=4, visible=False,
    )  # fmt: skip
    yield progress
    progress.close()
    board.close()


def test_numbers_come_a_logging_step_late(progress: Progress, tmp_path: Path):
    written = []
    for step in range(5, 12):
        progress.step(step, _metrics(step))
        written.append([line["step"] for line in _lines(tmp_path)])
    # Steps 6 and 9 are logged, and 11 because it is the last.
    assert written == [[], [], [], [], [6], [6], [6, 9]]
    progress.flush()
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [(6, 6), (9, 9), (11, 11)]
    progress.flush()
    assert len(_lines(tmp_path)) == 3


def test_speed_is_of_the_steps_since_the_last_line(progress: Progress, tmp_path: Path):
    with progress.paused():
        time.sleep(0.5)  # a validation: not counted
    time.sleep(0.02)
    progress.step(6, _metrics(1.0))  # two steps after the start
    progress.flush()
    line = _lines(tmp_path)[0]
    assert 2 / 0.4 < line["speed/steps_per_s"] < 2 / 0.02
    assert line["speed/clips_per_s"] == pytest.approx(32 * line["speed/steps_per_s"])
    assert line["speed/clips_per_s_per_chip"] == pytest.approx(8 * line["speed/steps_per_s"])
    assert "speed/mfu" not in line and "memory/in_use_gib" not in line  # of a CPU nobody knows


def test_what_is_not_a_number_is_left_out(progress: Progress, tmp_path: Path):
    progress.step(6, _metrics(2.0))
    progress.flush()
    assert "pair" not in _lines(tmp_path)[0] and "halted" not in _lines(tmp_path)[0]


def test_halting_is_seen_when_numbers_are_fetched(progress: Progress):
    progress.step(6, _metrics(np.nan, halted=True))
    assert not progress.halted
    progress.flush()
    assert progress.halted


def test_timed():
    def slow():
        for i in range(3):
            time.sleep(0.02)
            yield i

    stream = Timed(slow())
    assert [next(stream), next(stream)] == [0, 1]
    assert 0.04 <= stream.pop_wait() < 1
    assert stream.pop_wait() == 0
    with pytest.raises(StopIteration):
        for _ in range(2):
            next(stream)
