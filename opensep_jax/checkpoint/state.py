"""Training checkpoints: state, EMA and config under `<workdir>/checkpoints/<step>/` (orbax)."""

import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names it and says why."""


class Checkpoints:
    """Asynchronous saving and restoring of a run.

    A checkpoint is written beside its final name and renamed when whole, so a killed save leaves
    nothing that could be restored by mistake.
    """

    def __init__(self, workdir: Path, config: dict, keep: int, metric: str | None = None):
        """Opens or makes `<workdir>/checkpoints`.

        Args:
            workdir: of the run.
            config: stored with every checkpoint, JSON types only.
            keep: how many of the newest to keep; the best by `metric` is kept besides.
            metric: name in the metrics given to `save`, larger is better.
        """
        self._config = config
        policies = [ocp.checkpoint_managers.LatestN(keep)]
        if metric:
            policies.append(
                ocp.checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[metric], reverse=True, n=1
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=(lambda metrics: metrics[metric]) if metric else None,
            enable_async_checkpointing=True,
            create=True,
        )
        self._manager = ocp.CheckpointManager(
            _folder(workdir), options=options, item_names=("state", "ema", "config")
        )

    @property
    def latest(self) -> int | None:
        """Newest whole checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: object, ema: dict, metrics: dict[str, float] | None) -> None:
        """Copies the arrays to the host, then writes them in the background."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            ema=ocp.args.StandardSave(ema),
            config=ocp.args.JsonSave(self._config),
        )
        self._manager.save(step, args=items, metrics=metrics)

    def restore(self, step: int, state: object, ema: dict) -> tuple[object, dict]:
        """State and EMA of a step onto the shapes, types and shardings of the arguments."""
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(state), ema=ocp.args.StandardRestore(ema)
        )
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["ema"]

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_params(path: Path) -> tuple[dict, dict]:
    """Config and EMA parameters (host arrays) of a workdir's newest checkpoint, or of one step.

    Args:
        path: a workdir, its `checkpoints` folder, or `checkpoints/<step>`.

    Raises:
        CheckpointError: if there is none.
    """
    path = path.resolve()
    if path.name.isdigit() and path.parent.name == "checkpoints":
        folder, step = path.parent, int(path.name)
    else:
        folder, step = (path if path.name == "checkpoints" else path / "checkpoints"), None
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no checkpoints here")
    # Read without a CheckpointManager: opening one would clean up what a live run is writing.
    steps = sorted(ocp.utils.checkpoint_steps(folder))
    if not steps or (step is not None and step not in steps):
        raise CheckpointError(f"{path}: no whole checkpoint here; steps: {steps}")
    step = steps[-1] if step is None else step
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as reader:
        shapes = reader.metadata(folder / str(step) / "ema").item_metadata.tree
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), dict(shapes)
        )
        params = reader.restore(folder / str(step) / "ema", abstract)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        config = reader.restore(folder / str(step) / "config")
    return config | {"step": step}, jax.device_get(params)


def write_config(workdir: Path, config: dict) -> None:
    """Stores the config beside the checkpoints, for people to read."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def _folder(workdir: Path) -> Path:
    return (Path(workdir) / "checkpoints").resolve()
