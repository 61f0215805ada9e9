"""Whole runs: resuming, refusing, halting, and what a run leaves behind."""

import csv
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from opensep_jax import sharding, train, training_run
from opensep_jax.checkpoint.state import Checkpoints, load_params
from opensep_jax.cli import EXIT_DONE, EXIT_PREEMPTED, DoorError
from opensep_jax.data.shards import shard_name
from opensep_jax.data.text_table import write_text_shard
from opensep_jax.training import separator_task
from opensep_jax.training.separator_task import SeparatorTask
from tests import tiny_run
from tests.tiny_dataset import prepare_folder
from tests.tiny_run import STEPS

pytestmark = pytest.mark.usefixtures("compile_once")


def _run(folder: Path, workdir: Path, data: int = 1, fsdp: int = 1, **changes: object) -> int:
    changes = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__fsdp_min_size": 64} | changes
    config = tiny_run.tiny_config(folder, **changes)
    return train.main(config, workdir, jax.devices()[: data * fsdp])


@pytest.fixture(scope="module")
def straight(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory, compile_once: None
) -> Path:
    """Workdir of a run on one device that nothing has interrupted; read only."""
    workdir = tmp_path_factory.mktemp("straight")
    _run(tiny_dataset, workdir)
    return workdir


@pytest.fixture(scope="module")
def abandoned(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory, compile_once: None
) -> Path:
    """Workdir of the same run, left without closing anything after some steps past a checkpoint."""
    workdir, calls = tmp_path_factory.mktemp("abandoned"), []
    shard_batch = sharding.shard_batch

    def break_off(*args: object) -> dict:
        calls.append(1)
        if len(calls) == STEPS // 2 + 5:
            raise InterruptedError
        return shard_batch(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "shard_batch", break_off)
        patch.setattr(Checkpoints, "close", lambda self: None)
        with pytest.raises(InterruptedError):
            _run(tiny_dataset, workdir)
    _wait_for(workdir / "checkpoints" / str(STEPS // 2))
    return workdir


def _wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise TimeoutError(path)


def test_what_a_run_leaves(straight: Path, tiny_dataset: Path):
    steps = sorted(int(p.name) for p in (straight / "checkpoints").iterdir())
    assert steps == [STEPS // 2, STEPS]
    step_folder = straight / "checkpoints" / str(STEPS)
    assert {"state", "ema", "config"} <= {p.name for p in step_folder.iterdir()}
    description = json.loads((straight / "config.json").read_text())
    assert json.loads((step_folder / "config" / "config.json").read_text()) == description
    assert description["config"]["train"]["steps"] == STEPS
    assert description["text_encoder"]["width"] == 16

    losses = tiny_run.read_metrics(straight)
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    expected, _ = tiny_run.steps(tiny_dataset, STEPS)
    np.testing.assert_allclose([loss for _, loss in losses], expected, rtol=1e-6)
    speeds = (
        "speed/steps_per_s", "speed/clips_per_s", "speed/clips_per_s_per_chip", "speed/data_wait_s"
    )  # fmt: skip
    for name in (*speeds, "optim/learning_rate", "optim/gradient_norm"):
        assert len(tiny_run.read_metrics(straight, name)) == STEPS
    assert [step for step, _ in tiny_run.read_metrics(straight, "val/si_sdri")] == [STEPS]


def test_what_tensorboard_shows(straight: Path):
    events = EventAccumulator(str(straight)).Reload()
    tags = events.Tags()
    assert {"loss", "speed/clips_per_s", "val/si_sdri"} <= set(tags["scalars"])
    assert {f"val/2_sources/0/{name}" for name in ("mixture", "1_target", "2_estimate")} <= set(
        tags["audio"]
    )
    (image,) = events.Images("val/2_sources/0")
    picture = Image.open(io.BytesIO(image.encoded_image_string))
    assert picture.width > 900 and picture.height > 400
    (text,) = events.Tensors("config")
    assert b'"learning_rate": 0.001' in text.tensor_proto.string_val[0]
    hyper_parameters = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    assert hyper_parameters["optim.learning_rate"].number_value == 1e-3


def test_a_run_that_broke_off_goes_on_to_the_last_digit(
    straight: Path, abandoned: Path, tiny_dataset: Path, tmp_path: Path
):
    shutil.copytree(abandoned, tmp_path, dirs_exist_ok=True)
    assert len(tiny_run.read_metrics(tmp_path)) > STEPS // 2  # steps that will be done again
    with tiny_run.count_compilations("train_step") as events:
        _run(tiny_dataset, tmp_path)
    assert sorted(events) == ["compile", "trace"]
    assert tiny_run.read_metrics(tmp_path) == tiny_run.read_metrics(straight)
    tiny_run.assert_same_arrays(
        tiny_run.read_state(tmp_path, STEPS), tiny_run.read_state(straight, STEPS)
    )
    scalars = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [event.step for event in scalars] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("moment", [pytest.param("step", marks=pytest.mark.slow), "save"])
def test_a_run_that_is_told_to_stop_saves_and_goes_on(
    straight: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    """SIGTERM while a step is on the devices, and while a checkpoint is being written."""
    place, told_at, calls = sharding.shard_batch, STEPS // 2 + (3 if moment == "step" else 1), []

    def tell(*args: object) -> dict:
        calls.append(1)
        if len(calls) == told_at:  # the step before was given to the devices; or has been saved
            os.kill(os.getpid(), signal.SIGTERM)
        return place(*args)

    close = Checkpoints.close

    def tell_again(saved: Checkpoints) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        close(saved)

    with monkeypatch.context() as patch:
        patch.setattr(sharding, "shard_batch", tell)
        patch.setattr(Checkpoints, "close", tell_again)
        assert _run(tiny_dataset, tmp_path) == EXIT_PREEMPTED
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert steps == [STEPS // 2, told_at]
    assert len(tiny_run.read_metrics(tmp_path)) == told_at
    config = tiny_run.tiny_config(tiny_dataset, mesh__data=1)
    assert train.main(config, tmp_path, jax.devices()[:1], (STEPS - 1, STEPS)) == EXIT_DONE
    assert tiny_run.read_metrics(tmp_path) == tiny_run.read_metrics(straight)
    tiny_run.assert_same_arrays(
        tiny_run.read_state(tmp_path, STEPS), tiny_run.read_state(straight, STEPS)
    )
    (profile,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert b"train_step" in profile.read_bytes()


def test_a_validation_that_fails_costs_no_steps(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are saved first, and what it was to say is made up for."""

    def fails(*_: object) -> None:
        raise MemoryError("of the devices")

    jit_step = training_run.jit_step

    def slowly(run: training_run.Run) -> jax.stages.Wrapped:
        step = jit_step(run)

        class Step:
            def lower(self, *args: object) -> jax.stages.Lowered:
                time.sleep(8)
                return step.lower(*args)

        return Step()

    with monkeypatch.context() as patch:
        patch.setattr(SeparatorTask, "validate", fails)
        patch.setattr(train, "jit_step", slowly)
        with pytest.raises(MemoryError, match="of the devices"):
            _run(tiny_dataset, tmp_path, train__steps=3)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
    speeds = [speed for _, speed in tiny_run.read_metrics(tmp_path, "speed/steps_per_s")]
    assert len(speeds) == 3 and min(speeds) > 1 / 8  # compiling is not counted
    assert _run(tiny_dataset, tmp_path, train__steps=3) == EXIT_DONE
    ((step, score),) = tiny_run.read_metrics(tmp_path, "val/si_sdri")
    scores = json.loads((tmp_path / "checkpoints" / "3" / "metrics" / "metrics").read_text())
    assert step == 3 and scores["val/si_sdri"] == score


def test_a_validation_stops_when_the_run_is_told_to(
    straight: Path,
    abandoned: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    shutil.copytree(abandoned, tmp_path, dirs_exist_ok=True)
    mixture_batches, seen = separator_task.mixture_batches, []

    def tell(*args: object, **settings: object) -> Iterator[dict]:
        for batch in mixture_batches(*args, **settings):
            seen.append(1)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(separator_task, "mixture_batches", tell)
        assert _run(tiny_dataset, tmp_path, eval__batch=1) == EXIT_PREEMPTED
    assert len(seen) == 2  # of three
    assert (tmp_path / "checkpoints" / str(STEPS)).exists()
    assert not tiny_run.read_metrics(tmp_path, "val/si_sdri")
    assert _run(tiny_dataset, tmp_path) == EXIT_DONE
    for name in ("loss", "val/si_sdri"):
        assert tiny_run.read_metrics(tmp_path, name) == tiny_run.read_metrics(straight, name)


def test_a_run_that_is_told_to_stop_while_it_starts_has_done_nothing(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    start = training_run.start

    def told(*args: object) -> training_run.Run:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*args)

    monkeypatch.setattr(train, "start", told)
    assert _run(tiny_dataset, tmp_path) == EXIT_PREEMPTED
    assert not list((tmp_path / "checkpoints").iterdir())
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_resuming_on_another_mesh(
    straight: Path, abandoned: Path, tiny_dataset: Path, tmp_path: Path
):
    shutil.copytree(abandoned, tmp_path, dirs_exist_ok=True)
    _run(tiny_dataset, tmp_path, data=4, fsdp=2)
    steps, losses = zip(*tiny_run.read_metrics(tmp_path), strict=True)
    assert steps == tuple(range(1, STEPS + 1))
    expected = [loss for _, loss in tiny_run.read_metrics(straight)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_finished_run_stays_as_it_is(straight: Path, tiny_dataset: Path, tmp_path: Path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    _run(tiny_dataset, tmp_path)
    assert tiny_run.read_metrics(tmp_path) == tiny_run.read_metrics(straight)


def test_parameters_to_start_from(straight: Path, tiny_dataset: Path):
    run = tiny_run.start(tiny_dataset, train__init_from=str(straight))

    class Nothing:
        def restore_newest(self, *_: object) -> None:
            return None

    state = training_run.first_state(run, Nothing())
    _, params = load_params(straight)
    assert int(state.step) == 0
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, tree, params)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optim__learning_rate": 0.5}, "optim.learning_rate: 0.001 there, 0.5 now"),
        ({"seed": 7}, "seed: 0 there, 7 now"),
        ({"data__crop_s": 0.32}, "data.crop_s: 0.256 there, 0.32 now"),
        ({"mix__counts__3": 0.5}, "mix.counts.3: 0.0 there, 0.5 now"),
        ({"model__dtype": "bfloat16"}, "model.dtype: 'float32' there, 'bfloat16' now"),
        ({"train__batch": 16}, "train.batch: 8 there, 16 now"),
    ],
)
def test_another_config_is_refused(straight: Path, tiny_dataset: Path, changes: dict, message: str):
    before = (straight / "config.json").read_bytes()
    with pytest.raises(DoorError, match="holds a run of another config") as error:
        _run(tiny_dataset, straight, **changes)
    assert f"({message}); use another --workdir" in str(error.value)
    assert (straight / "config.json").read_bytes() == before


def test_other_records_are_refused(
    straight: Path, tiny_dataset: Path, tiny_sounds: Path, tiny_encoder: Path, tmp_path: Path
):
    shutil.copytree(tiny_dataset, tmp_path / "moved")
    _run(tmp_path / "moved", straight)  # the same, elsewhere
    sounds = shutil.copytree(tiny_sounds, tmp_path / "sounds")
    manifest = (sounds / "manifest.csv").read_text()
    assert "train" in manifest
    caption = next(csv.DictReader(io.StringIO(manifest)))["caption"]
    (sounds / "manifest.csv").write_text(manifest.replace(caption, "something else", 1))
    assert prepare_folder(sounds, tmp_path / "other", tiny_encoder) == 0
    with pytest.raises(DoorError, match=r"records.train.sha256: .* there, .* now"):
        _run(tmp_path / "other", straight)


def test_a_config_without_checkpoints_stops_nobody(
    straight: Path, tiny_dataset: Path, tmp_path: Path
):
    """A first start that failed leaves nothing to lose; the corrected one may go on there."""
    shutil.copy(straight / "config.json", tmp_path)
    _run(tiny_dataset, tmp_path, seed=1, train__steps=3)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["seed"] == 1


def _poisoned(folder: Path, copy: Path, first_step: int) -> Path:
    """Records with NaN in those prompts that no step before `first_step` asks for."""
    shutil.copytree(folder, copy)
    run, used = tiny_run.start(folder), set()
    for _, batch in zip(range(first_step), run.batches(0), strict=False):
        used |= set(batch["text_id"].ravel().tolist())
    text = run.task.train.text
    rows = [
        (key, text.prompts[i], text.states(i) if i in used else text.states(i) * np.nan)
        for key, i in text.ids.items()
    ]
    assert len(used & set(text.ids.values())) < len(rows)
    write_text_shard(copy / shard_name("text", 0, 1), rows)
    return copy


def test_a_batch_that_is_not_finite_stops_the_run(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, workdir = _poisoned(tiny_dataset, tmp_path / "bad", first_step=2), tmp_path / "run"
    # Neither logged nor saved in most steps: the bad one must be found all the same.
    cadence = {"train__save_every_steps": 4, "train__log_every_steps": 7}
    monkeypatch.setattr(train, "CONFIG", _Flag(tiny_run.tiny_config(folder, **cadence)))
    monkeypatch.setattr(train, "WORKDIR", _Flag(str(workdir)))
    for name in ("DEBUG", "DISTRIBUTED", "COORDINATOR"):
        monkeypatch.setattr(train, name, _Flag(False))
    for name in ("NUM_PROCESSES", "PROCESS_ID", "PROFILE_STEPS"):
        monkeypatch.setattr(train, name, _Flag(None))
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    with pytest.raises(SystemExit) as exit_info:
        train._main(["train"])
    assert exit_info.value.code == 2
    message = output.getvalue().splitlines()[-1]
    bad = int(message.split("step ")[1].split(" ")[0])
    assert 3 <= bad < STEPS
    assert f"step {bad} is not finite (constants: tokens; metrics: " in message
    assert "gradients: " in message and "/kernel" in message
    assert "Finite are parameters, optimiser, batch" in message
    # What is on disk is good, and of the last save before.
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*")]
    assert max(steps, default=0) == (bad - 1) // 4 * 4
    for step in steps:
        for name, value in tiny_run.read_state(workdir, step).items():
            assert np.isfinite(value).all(), name
    lines = (workdir / "metrics.jsonl").read_text()
    assert "NaN" not in lines


class _Flag:
    """A flag that was given."""

    def __init__(self, value: object):
        self.value = value
