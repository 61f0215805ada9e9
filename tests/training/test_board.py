"""What TensorBoard and other programs read back."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from opensep_jax.training.board import Board
from opensep_jax.training.panels import Exhibit
from tests.memory_store import memory_store


def _read(workdir: Path) -> EventAccumulator:
    return EventAccumulator(str(workdir)).Reload()


def _steps(workdir: Path) -> list[int]:
    return [
        json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def test_scalars_in_both_files(tmp_path: Path):
    board = Board(tmp_path)
    for step in (1, 2):
        board.scalars(step, {"loss": step / 4, "val/si_sdri": -1.0})
    board.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.25), (2, 0.5)]
    events = _read(tmp_path).Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.25), (2, 0.5)]


def test_sounds_pictures_and_text(tmp_path: Path):
    wave_T = np.sin(np.arange(800) / 5).astype(np.float32)
    exhibit = Exhibit(8000)
    exhibit.sounds["a/mixture"] = 2 * wave_T
    exhibit.pictures["a"] = Image.new("RGB", (30, 20), "red")
    board = Board(tmp_path)
    board.exhibit(7, "val", exhibit)
    board.text(0, "config", "*seed* 0")
    board.close()

    events = _read(tmp_path)
    (sound,) = events.Audio("val/a/mixture")
    read_T, rate = soundfile.read(io.BytesIO(sound.encoded_audio_string))
    assert (sound.step, rate, sound.content_type) == (7, 8000, "audio/wav")
    np.testing.assert_allclose(read_T, wave_T, atol=2e-4)  # scaled down to a peak of one
    (image,) = events.Images("val/a")
    picture = Image.open(io.BytesIO(image.encoded_image_string))
    assert picture.size == (30, 20) and picture.getpixel((3, 3)) == (255, 0, 0)
    (text,) = events.Tensors("config")
    assert tensor_util.make_ndarray(text.tensor_proto).tolist() == [b"*seed* 0"]
    assert events.SummaryMetadata("config").plugin_data.plugin_name == "text"


def test_resuming_drops_later_steps(tmp_path: Path):
    board = Board(tmp_path)
    for step in range(1, 6):
        board.scalars(step, {"loss": 1.0})
    board.close()
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "lo')  # a kill in the middle of a line

    board = Board(tmp_path, first_step=3)
    for step in range(4, 8):
        board.scalars(step, {"loss": 2.0})
    board.close()
    assert _steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    values = [(event.step, event.value) for event in _read(tmp_path).Scalars("loss")]
    assert values == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]


def test_from_the_start_everything_is_dropped(tmp_path: Path):
    board = Board(tmp_path)
    board.scalars(2, {"loss": 1.0})
    board.close()
    Board(tmp_path).close()
    assert _steps(tmp_path) == []


def test_an_object_store_has_what_was_published(tmp_path: Path):
    with memory_store() as bucket:
        killed = Board(bucket / "run")
        killed.scalars(1, {"loss": 1.0})
        killed.publish()
        killed.scalars(2, {"loss": 0.5})
        board = Board(bucket / "run", first_step=1)
        board.scalars(2, {"loss": 0.25})
        board.close()
        assert not board.folder.exists()
        for file in (bucket / "run").iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        killed.close()
    assert _steps(tmp_path) == [1, 2]
    values = [(event.step, event.value) for event in _read(tmp_path).Scalars("loss")]
    assert values == [(1, 1), (2, 0.25)]


def test_what_has_not_changed_is_not_published_again():
    with memory_store() as bucket:
        board = Board(bucket / "run")
        (board.folder / "profile.pb").write_bytes(bytes(9))
        board.publish()
        (bucket / "run" / "profile.pb").unlink()  # would come back with another copy
        board.scalars(1, {"loss": 1.0})
        board.close()
        events, lines = sorted(file.name for file in (bucket / "run").iterdir())
        assert events.startswith("events") and '"loss": 1.0' in (bucket / "run" / lines).read_text()


@pytest.mark.parametrize("call", ["scalars", "audio", "image", "text", "exhibit"])
def test_other_processes_write_nothing(tmp_path: Path, call: str):
    board = Board(tmp_path / "none", active=False)
    arguments = {
        "scalars": (1, {"loss": 1.0}),
        "audio": (1, "a", np.zeros(4), 8000),
        "image": (1, "a", Image.new("RGB", (2, 2))),
        "text": (1, "a", "b"),
        "exhibit": (1, "val", Exhibit(8000, {"a": np.zeros(4)})),
    }
    getattr(board, call)(*arguments[call])
    board.close()
    assert not (tmp_path / "none").exists()


def test_full_disk(small_disk: Path):
    board = Board(small_disk)
    noise_T = np.random.default_rng(0).uniform(-1, 1, 2**16).astype(np.float32)
    with pytest.raises(OSError, match=r"No space left on device: '.*/events.out.tfevents"):
        for step in range(100):
            board.audio(step, "noise", noise_T, 8000)
    board.close()
