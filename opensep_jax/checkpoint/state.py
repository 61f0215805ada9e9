"""Training checkpoints: state, EMA and config under `<workdir>/checkpoints/<step>/` (orbax).

checkpoints/<step>/state/, ema/          arrays
checkpoints/<step>/config/config.json    all that is needed to use them, for people too
checkpoints/<step>/metrics/metrics       validation scores of that step, JSON
checkpoints/<step>.damaged/              could not be read and was set aside
"""

import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

_CONFIG_FILE = "config.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message names it and says why."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, which saves when it is told to and asks nobody else whether a run is to stop.

    Its questions, one of them from a thread that ends an earlier save, would reset the count of
    steps that JAX's preemption service keeps for `processes.Preemption`, and notice be missed.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """Asynchronous saving and restoring of a run.

    A checkpoint is written beside its final name and renamed when whole, so a killed save leaves
    nothing that could be restored by mistake.
    """

    def __init__(self, workdir: Path | epath.Path, config: dict, keep: int, metric: str):
        """Opens or makes `<workdir>/checkpoints`; removes what killed saves have left there.

        Args:
            workdir: of the run; in an object store as `epath.Path` (not yet run on one).
            config: stored with every checkpoint, JSON types only.
            keep: how many of the newest to keep; the best by `metric` is kept besides. What falls
                behind is deleted by the next `save`.
            metric: name in the scores given to `add_scores`, larger is better.

        Raises:
            CheckpointError: if there are checkpoints, but the JSON of none can be read.
        """
        self._config, self._folder = config, _folder(workdir)
        self._unwritten: int | None = None
        _set_aside_broken_json(self._folder)

        def score(scores: dict[str, float]) -> float:
            return scores.get(metric, -np.inf)

        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            best_fn=score,
            cleanup_tmp_directories=True,
        )
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        json_handler = ocp.JsonCheckpointHandler(filename=_CONFIG_FILE)
        registry.add("config", ocp.args.JsonSave, json_handler)
        registry.add("config", ocp.args.JsonRestore, json_handler)
        self._manager = _Manager(self._folder, options=options, handler_registry=registry)

    @property
    def steps(self) -> list[int]:
        """Steps of whole checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: object, ema: dict) -> None:
        """Copies the arrays to the host, then writes them in the background.

        Args:
            step: steps done.
            state: all but the EMA.
            ema: parameters that are evaluated and shipped.

        Raises:
            CheckpointError: if this one or the one before cannot be written (a full disk); earlier
                ones are intact.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            ema=ocp.args.StandardSave(ema),
            config=ocp.args.JsonSave(self._config),
        )
        self.wait()
        self._unwritten = step
        try:
            self._manager.save(step, args=items, metrics={})
        except Exception as error:  # orbax and its storage raise many kinds
            raise self._not_written(error) from error

    def lacks_scores(self, step: int) -> bool:
        """Whether there is a checkpoint of that step, but no scores of it."""
        return step in self.steps and not _everywhere(bool(self._manager.metrics(step)))

    def add_scores(self, step: int, scores: dict[str, float]) -> None:
        """Adds the scores of validation to the checkpoint of a step, once that is written.

        Raises:
            CheckpointError: if the checkpoint cannot be written.
        """
        self.wait()
        if jax.process_index() == 0:
            _replace(_scores_file(self._folder / str(step)), json.dumps(scores))
        _meet("scores are written")
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            CheckpointError: if it cannot be.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as in `save`
            raise self._not_written(error) from error

    def restore_newest(self, state: object, ema: dict) -> tuple[int, object, dict] | None:
        """Step, state and EMA of the newest checkpoint that can be read.

        Damaged ones that are newer are set aside, with a warning, so that the run can save those
        steps again.

        Args:
            state: shapes, types and shardings of all but the EMA.
            ema: likewise of the EMA.

        Returns:
            None if there is no checkpoint at all.

        Raises:
            CheckpointError: if there are checkpoints, but none can be read.
        """
        damaged: list[str] = []
        for step in reversed(self.steps):
            restored, why = None, "another process could not"
            try:
                with _quiet_threads():
                    folder = self._folder / str(step)
                    restored = _restored(folder / "state", state), _restored(folder / "ema", ema)
            except Exception as error:  # as in `save`
                why = _first_line(error)
            if _everywhere(restored is not None):
                _set_aside([self._folder / str(later) for later in self.steps if later > step])
                self._manager.reload()
                return step, *restored
            damaged.append(f"{self._folder / str(step)} cannot be read: {why}")
            logger.warning("%s", damaged[-1])
        if damaged:
            raise CheckpointError("; ".join(damaged))
        return None

    def close(self) -> None:
        """Waits until everything is written."""
        self.wait()
        self._manager.close()

    def _not_written(self, error: Exception) -> CheckpointError:
        whole = [step for step in self.steps if step != self._unwritten]
        return CheckpointError(
            f"{self._folder / str(self._unwritten)} cannot be written: {_first_line(error)}; "
            f"whole checkpoints: {', '.join(map(str, whole)) or 'none'}"
        )


def load_params(path: Path) -> tuple[dict, dict]:
    """Config (with `step`) and EMA parameters (host arrays) of a training checkpoint.

    Args:
        path: `checkpoints/<step>`, or a workdir or its `checkpoints` folder, whose newest
            checkpoint that can be read is taken.

    Raises:
        CheckpointError: if there is none.
    """
    path = path.resolve()
    if path.name.isdigit() and path.parent.name == "checkpoints":
        folder, wanted = path.parent, int(path.name)
    else:
        folder, wanted = (path if path.name == "checkpoints" else _folder(path)), None
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no checkpoints here")
    steps = _steps(folder)
    if not steps or (wanted is not None and wanted not in steps):
        raise CheckpointError(f"{path}: no whole checkpoint here; steps: {steps}")
    damaged: list[str] = []
    for step in reversed(steps) if wanted is None else (wanted,):
        try:
            config = json.loads(_config_file(folder / str(step)).read_text())
            with _quiet_threads():
                return config | {"step": step}, _read_arrays(folder / str(step) / "ema")
        except Exception as error:  # as in `Checkpoints.save`
            damaged.append(f"{folder / str(step)} cannot be read: {_first_line(error)}")
            logger.warning("%s", damaged[-1])
    raise CheckpointError("; ".join(damaged))


def read_config(workdir: Path | epath.Path) -> dict | None:
    """The config that a workdir was made with; None for a new one.

    Raises:
        CheckpointError: if it cannot be read.
    """
    folder = _folder(workdir)
    files = [_config_file(folder / str(step)) for step in _steps(folder)[::-1]]
    files.insert(0, workdir / "config.json")
    for file in files:
        if file.exists():
            try:
                return json.loads(file.read_text())
            except ValueError as error:
                raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    return None


def write_config(workdir: Path | epath.Path, config: dict) -> None:
    """Stores the config beside the checkpoints."""
    workdir.mkdir(parents=True, exist_ok=True)
    _replace(workdir / "config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")


def _replace(file: Path | epath.Path, text: str) -> None:
    """Writes a file that is never there in part."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text)
    temporary.replace(file)


def _read_arrays(folder: Path) -> dict:
    """The tree of arrays of an item, on the host."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
        tree = dict(reader.metadata(epath.Path(folder)).tree)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)
    return jax.device_get(_restored(folder, target))


def _restored(folder: Path | epath.Path, target: object) -> object:
    """The arrays of an item, as `target` has them on this process.

    Orbax's manager waits for all processes after it has read; where one cannot read, the others
    would wait in vain. This waits for nobody.
    """
    with contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
        return reader.restore(epath.Path(folder), args=ocp.args.StandardRestore(target))


def _folder(workdir: Path | epath.Path) -> Path | epath.Path:
    folder = workdir / "checkpoints"
    return folder.resolve() if isinstance(folder, Path) else folder  # the latter: an object store


def _config_file(step_folder: Path) -> Path:
    """Where the config of a checkpoint is."""
    return step_folder / "config" / _CONFIG_FILE


def _scores_file(step_folder: Path) -> Path:
    """Where the scores of a checkpoint are, `{}` while it has none."""
    return step_folder / "metrics" / "metrics"


def _steps(folder: Path) -> list[int]:
    """Steps of checkpoints that were written to the end, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def _set_aside_broken_json(folder: Path) -> None:
    """Sets aside checkpoints whose JSON is not whole: orbax would refuse the entire folder.

    Raises:
        CheckpointError: none is whole; all are left where they are, and no run begins anew there.
    """
    broken, why = [], []
    step_folders = [folder / str(step) for step in _steps(folder)]
    for step_folder in step_folders:
        try:
            json.loads(_config_file(step_folder).read_text())
            scores = _scores_file(step_folder)
            json.loads(scores.read_text() if scores.exists() else "{}")
        except (ValueError, OSError) as error:
            broken.append(step_folder)
            why.append(f"{step_folder} cannot be read: {_first_line(error)}")
            logger.warning("%s", why[-1])
    if broken and broken == step_folders:
        raise CheckpointError("; ".join(why))
    _set_aside(broken)


def _set_aside(step_folders: list[Path]) -> None:
    """Renames checkpoints to names that are not looked at; nothing is deleted."""
    for folder in step_folders if jax.process_index() == 0 else ():
        names = (f"{folder.name}.damaged{suffix}" for suffix in ("", *range(2, 1000)))
        folder.rename(next(p for p in map(folder.with_name, names) if not p.exists()))
    _meet("damaged checkpoints are set aside")


def _meet(where: str) -> None:
    """Waits until all processes are there."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _everywhere(good: bool) -> bool:
    """Whether it is so on all processes."""
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Drops what storage threads print after a failure: hundreds of lines on closed event loops."""
    hook = sys.unraisablehook

    def without_loops(unraisable: object) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = without_loops
    try:
        yield
    except Exception:
        time.sleep(0.5)  # the threads are about to notice
        raise
    finally:
        sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
    """The gist of an error: of the first one in a chain, what the operating system says first."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).strip().splitlines() or [""])[0]
    code = re.search(r"os_error_code='(\d+)'", line)
    gist = f"{os.strerror(int(code[1]))}: " if code else ""
    return f"{gist}{type(error).__name__}: {line if len(line) <= 300 else line[:300] + '...'}"
