"""The command: exit code 2 and a message for everything that cannot start or go on."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from absl.testing import flagsaver

from opensep_jax import train
from opensep_jax.checkpoint.state import Checkpoints, load_params
from opensep_jax.training.board import Board
from opensep_jax.training.step import TrainState

pytestmark = [
    pytest.mark.usefixtures("compile_once"),
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),  # ml_collections
]
CONFIG_FILE = Path(__file__).resolve().parent.parent / "configs" / "debug.py"


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command takes for all devices."""
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[..., tuple[int, str]]:
    """Runs the command with flags; exit code and what it said."""

    def call(*argv: object) -> tuple[int, str]:
        # Without absl's set-up of logging, which closes the captured stderr of an earlier test.
        monkeypatch.setattr(train.app, "run", lambda main, flags_parser: main(flags_parser(given)))
        given = ["train", *map(str, argv)]
        monkeypatch.setattr(sys, "argv", given)  # ml_collections looks there for overrides
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_info:
            train.cli()
        return exit_info.value.code, capfd.readouterr().err

    return call


def _flags(folder: Path, tmp_path: Path, **changes: object) -> list[str]:
    given = [f"--config.{k.replace('__', '.')}={v}" for k, v in changes.items()]
    return [
        f"--config={CONFIG_FILE}", f"--workdir={tmp_path / 'run'}",
        f"--config.data.folder={folder}", *given,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train__batch": 12}, "train.batch=12 is not divisible by 8 devices"),
        ({"train__accumulation": 2}, "times train.accumulation=2"),
        ({"sample_rate_hz": 8000}, "records at 16000 Hz, but sample_rate_hz=8000 in the config"),
        ({"mesh__fsdp": 3}, "mesh data=-1, fsdp=3, tensor=1 does not fit 8 devices"),
        ({"optim__warmup_steps": 20}, "optim.warmup_steps=20 must be below train.steps=20"),
        ({"model__size": "huge"}, "model.size='huge' is not known; known are debug, "),
        ({"task": "mixer"}, "config.task='mixer' is not known; known: separator, captioner"),
        ({"train__init_from": "nowhere"}, "unknown checkpoint 'nowhere': no such folder"),
        ({"train__log_every_steps": 0}, "config.train.log_every_steps=0 must be positive"),
        ({"data__crop_s": -1.0}, "config.data.crop_s=-1.0 must be positive"),
        ({"eval__mixtures": 0}, "config.eval.mixtures=0 must be positive"),
        ({"eval__sources": (2, 99)}, "99"),
        ({"eval__wording": "song"}, "has no prompt of kind 'song', only caption"),
        (
            {"loss__negative_snr": 0.0, "loss__magnitude_l1": 0.0},
            "config.loss.magnitude_l1=0.0, config.loss.negative_snr=0.0: none may be negative",
        ),
        ({"data__wordings__label": -1.0}, "none may be negative, and one must be more than zero"),
        ({"mesh__tensor": 2}, "config.mesh.tensor=2 must be 1: no network that is trained"),
        ({"mesh__tensor": -1, "mesh__data": 1}, "config.mesh.tensor=-1 must be 1"),
        ({"data__crop_s": 4e-3}, "data.crop_s=0.004 is too short: two hops are needed (stft.hop"),
        ({"eval__seconds": 1e-5}, "config.eval.seconds=1e-05 is less than a sample of config.sam"),
        ({"eval__sources": ()}, "config.eval.sources=(): numbers of sources, such as (2, 3), are"),
        ({"eval__sources": (2, 0)}, "config.eval.sources=(2, 0): numbers of sources"),
        ({"train__batch": "many"}, "train.batch"),
        ({"optim__lernrate": 1}, "lernrate"),
    ],
)
def test_what_cannot_start_says_why(
    cli: Callable, tiny_dataset: Path, tmp_path: Path, changes: dict, message: str
):
    code, said = cli(*_flags(tiny_dataset, tmp_path, **changes))
    assert code == 2 and message in said
    assert "Traceback" not in said


def test_data_that_cannot_be_used(cli: Callable, tiny_dataset: Path, tmp_path: Path):
    code, said = cli(*_flags(tmp_path / "absent", tmp_path))
    assert code == 2 and f"{tmp_path / 'absent'}: no dataset.json" in said
    code, said = cli(f"--config={CONFIG_FILE}", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and "config.data.folder is empty" in said
    shutil.copytree(tiny_dataset, tmp_path / "old")
    info = json.loads((tmp_path / "old" / "dataset.json").read_text())
    (tmp_path / "old" / "dataset.json").write_text(json.dumps(info | {"schema": 99}))
    code, said = cli(*_flags(tmp_path / "old", tmp_path))
    assert code == 2 and "schema 99, this version reads 2" in said
    assert "prepare the data again" in said


def test_config_files_that_cannot_be_used(cli: Callable, tmp_path: Path):
    workdir = f"--workdir={tmp_path / 'run'}"
    code, said = cli("--config=configs/absent.py", workdir)
    assert code == 2 and "configs/absent.py" in said and "Traceback" not in said
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:")
    code, said = cli(f"--config={broken}", workdir)
    assert code == 2 and "broken.py" in said
    code, said = cli(workdir)
    assert code == 2 and "--config" in said
    code, said = cli(f"--config={CONFIG_FILE}", workdir, "--num_processes=2")
    assert code == 2 and "--num_processes and --process_id need --coordinator_address" in said
    code, said = cli(f"--config={CONFIG_FILE}", workdir, "stray")
    assert code == 2 and "unexpected arguments: stray" in said
    code, said = cli(f"--config={CONFIG_FILE}", workdir, "--profile_steps=5:3")
    assert code == 2 and "--profile_steps: '5:3' is not A:B with 1 <= A <= B" in said


def test_workdirs_that_cannot_be_used(cli: Callable, monkeypatch: pytest.MonkeyPatch):
    code, said = cli(f"--config={CONFIG_FILE}", "--workdir=memory://runs/a")
    assert code == 2 and "--workdir=memory://runs/a: of gs, s3, az and local folders" in said
    monkeypatch.setitem(sys.modules, "s3fs", None)  # is not installed
    code, said = cli(f"--config={CONFIG_FILE}", "--workdir=s3://runs/a")
    assert code == 2 and "--workdir=s3://runs/a: Install s3fs" in said


@pytest.mark.usefixtures("one_device")
def test_a_workdir_of_another_config(
    cli: Callable, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Begun(ValueError):
        """Enough of this run."""

    def begin(run: object, state: TrainState, board: object, saved: Checkpoints, *_) -> None:
        if not saved.steps:
            saved.save(1, state.replace(ema={}), state.ema)
        raise Begun("begun")

    monkeypatch.setattr(train, "loop", begin)
    code, said = cli(*_flags(tiny_dataset, tmp_path))
    assert code == 2 and "begun" in said
    code, said = cli(*_flags(tiny_dataset, tmp_path, seed=3))
    assert code == 2 and "(seed: 0 there, 3 now); use another --workdir" in said
    code, said = cli(*_flags(tiny_dataset, tmp_path, train__save_every_steps=3))
    assert "begun" in said


@pytest.mark.usefixtures("one_device")
def test_a_full_disk_stops_the_run(
    cli: Callable, tiny_dataset: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    """The checkpoint before is whole."""

    def saves(run: object, state: TrainState, board: Board, saved: Checkpoints, *_) -> None:
        saved.save(1, state.replace(ema={}), state.ema)
        saved.wait()
        (small_disk / "others").write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**16))
        saved.save(2, state.replace(ema={}), state.ema)

    monkeypatch.setattr(train, "loop", saves)
    code, said = cli(*_flags(tiny_dataset, small_disk))
    assert code == 2 and "checkpoints/2 cannot be written" in said
    assert "No space left on device" in said and "whole checkpoints: 1" in said
    assert "Traceback" not in said
    assert load_params(small_disk / "run")[0]["step"] == 1


@pytest.mark.parametrize(
    "start", [["-m", "opensep_jax.train"], ["-c", "from opensep_jax.train import cli; cli()"]]
)
def test_help_as_module_and_as_console_script(start: list[str]):
    command = [sys.executable, *start, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CONFIG_FILE.parent.parent)
    assert done.returncode == 0
    assert "--workdir" in done.stdout and "--config" in done.stdout
