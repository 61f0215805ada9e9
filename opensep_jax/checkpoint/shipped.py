"""Checkpoints as folders that ship: float16 weights and a config; and loading of any checkpoint.

FOLDER/model.safetensors   flattened parameters, names joined by "/"
FOLDER/config.json         what `export` was given, and `weights_sha256`
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from opensep_jax.models import convert

SCHEMA_VERSION = 1
SHIPPED = {  # folders inside the package by task and name
    "separator": {"demo": "assets/demo"},
    "captioner": {"demo": "assets/demo_captioner"},
    "unconditional": {},
}

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
# What a network cannot be built without, by task; numbers are positive.
_REQUIRED = {
    "separator": {
        "model": {"size": str, "dtype": str},
        "stft": {"n_fft_samples": int, "hop_samples": int},
        "sample_rate_hz": int,
        "text_encoder": {"name": str, "id": str, "width": int, "max_tokens": int},
        "window_s": float,
    },
    "captioner": {
        "model": {"size": str},
        "mel": {"n_fft_samples": int, "hop_samples": int, "low_hz": float, "high_hz": float},
        "sample_rate_hz": int,
        "window_s": float,
        "clauses": dict,
        "max_sources": int,
    },
    "unconditional": {
        "model": {"size": str, "dtype": str},
        "stft": {"n_fft_samples": int, "hop_samples": int},
        "sample_rate_hz": int,
        "prompts": {"outputs": int, "width": int},
    },
}
_KINDS = {
    str: "a text",
    int: "a whole number above 0",
    float: "a number above 0",
    dict: "a table of texts",
}


class OtherTask(ValueError):
    """A checkpoint that has learned another task than the one wanted."""

    def __init__(self, message: str, task: object):
        super().__init__(message)
        self.task = task


def export(
    folder: str | os.PathLike,
    params: Mapping,
    config: Mapping,
    dtype: type[np.floating] = np.float16,
) -> None:
    """Writes a checkpoint for shipping; the folder appears, or is replaced, as a whole.

    Args:
        folder: where; an earlier export there is replaced, anything else is refused.
        params: nested dict of arrays, any float type; rounded to `dtype`.
        config: JSON types; at least `schema`, `task` and what its task requires.
        dtype: of the stored weights.

    Raises:
        ValueError: the config lacks something, a parameter is beyond `dtype`, or `folder` holds
            something else.
    """
    folder = Path(os.path.abspath(folder))
    _check_config(config, f"config for {folder}", _task_of(config))
    if folder.exists() and not (folder / _WEIGHTS).is_file():
        raise ValueError(f"{folder} exists and is no exported checkpoint; it is not replaced")
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    with np.errstate(over="ignore"):  # what overflows is named below
        tensors = {name: np.asarray(flat[name]).astype(dtype) for name in sorted(flat)}
    wrong = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if wrong:
        raise ValueError(f"not finite in {dtype.__name__}: {', '.join(wrong)}")
    data = safetensors.numpy.save(tensors)
    config = {**config, "weights_sha256": hashlib.sha256(data).hexdigest()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        fresh = Path(scratch, "new")
        fresh.mkdir()
        (fresh / _WEIGHTS).write_bytes(data)
        (fresh / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        if folder.exists():
            for kept in folder.iterdir():  # such as the model card
                if kept.name not in (_WEIGHTS, _CONFIG):
                    os.rename(kept, fresh / kept.name)
            os.rename(folder, Path(scratch, "old"))
        os.rename(fresh, folder)


def load(
    name_or_path: str | os.PathLike,
    abstract_params: Callable[[dict], Mapping],
    task: str = "separator",
) -> tuple[dict, dict]:
    """Loads a checkpoint of any form.

    Args:
        name_or_path: a name of `SHIPPED` for the task, an exported folder, a training workdir (its
            newest checkpoint) or its `checkpoints/<step>`. A folder that has the name of a shipped
            one is meant when written with a path, as in `./demo`.
        abstract_params: from the config to the parameters' shapes and types, as `jax.eval_shape`
            gives them.
        task: what the checkpoint must have learned, a key of `SHIPPED`.

    Returns:
        Config (with `steps`) and parameters, a nested dict of numpy arrays like the shapes.

    Raises:
        ValueError: nothing is known by that name, or it is damaged, or of another kind; missing,
            unexpected and misshapen tensors are all named at once.
    """
    path = _find(name_or_path, SHIPPED[task])
    if (path / _WEIGHTS).is_file():
        config, tensors = _read_export(path)
    else:
        from opensep_jax.checkpoint import state  # orbax is slow to import

        config, params = state.load_params(path)
        config = {"steps": config.get("step"), **config}
        tensors = traverse_util.flatten_dict(dict(params), sep="/")
    _check_config(config, str(path), task)
    table = convert.WeightTable(str(path), (convert.Rule("(.+)", r"\1"),))
    return config, convert.convert(tensors, table, abstract_params(config))


def verify(name: str, task: str = "separator") -> dict:
    """Config of a shipped checkpoint whose files are whole.

    Raises:
        ValueError: it is not there, or damaged.
    """
    path = _find(name, SHIPPED[task])
    config, _ = _read_export(path)
    _check_config(config, str(path), task)
    return config


def params_id(params: Mapping) -> str:
    """Content hash of parameters, 16 hex digits: the same weights have the same id everywhere."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    digest = hashlib.sha256()
    for name in sorted(flat):
        value = np.asarray(jax.device_get(flat[name]), np.float32)
        digest.update(f"{name}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()[:16]


def _find(name_or_path: str | os.PathLike, shipped: Mapping[str, str]) -> Path:
    """Folder of a checkpoint, exported or of a training run."""
    name = os.fspath(name_or_path)
    known = f"known names: {', '.join(shipped)}"
    if name in shipped:
        path = Path(str(resources.files("opensep_jax").joinpath(shipped[name])))
        if not (path / _WEIGHTS).is_file():
            raise ValueError(f"checkpoint {name!r} is not part of this installation ({path})")
        return path
    path = Path(name).expanduser()
    if not name or not path.is_dir():
        raise ValueError(f"unknown checkpoint {name!r}: no such folder; {known}")
    if (path / _WEIGHTS).is_file() or (path / "checkpoints").is_dir():
        return path
    if "checkpoints" in (path.resolve().name, path.resolve().parent.name):
        return path
    raise ValueError(
        f"unknown checkpoint {name!r}: the folder has neither {_WEIGHTS} (exported) nor "
        f"checkpoints/ (training); {known}"
    )


def _read_export(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Config and flat tensors; both files must be whole and belong together."""
    try:
        config = json.loads((folder / _CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / _CONFIG} cannot be read: {error}") from error
    data = (folder / _WEIGHTS).read_bytes()
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / _WEIGHTS} is damaged: {error}") from error
    expected = isinstance(config, dict) and config.get("weights_sha256")
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(
            f"{folder / _WEIGHTS} is damaged or belongs to another {_CONFIG}: "
            "its SHA-256 is not the one in there"
        )
    return config, tensors


def _task_of(config: Mapping) -> str:
    """The task that a config names; of unknown ones, the first that is known."""
    return config.get("task") if config.get("task") in _REQUIRED else next(iter(_REQUIRED))


def _check_config(config: object, where: str, task: str) -> None:
    """Raises for everything that is missing or of another kind."""
    if not isinstance(config, Mapping):
        raise ValueError(f"{where}: the config is no JSON object")
    if config.get("schema") != SCHEMA_VERSION or config.get("task") != task:
        raise OtherTask(
            f"{where}: schema {config.get('schema')!r} and task {config.get('task')!r}; "
            f"needed are schema {SCHEMA_VERSION} and task {task!r}",
            config.get("task"),
        )
    missing, leaves = [], {}
    for key, parts in _REQUIRED[task].items():
        value = config.get(key)
        if value is None or (isinstance(parts, dict) and not isinstance(value, Mapping)):
            missing.append(key)
        elif isinstance(parts, dict):
            missing += [f"{key}.{part}" for part in parts if part not in value]
            leaves |= {f"{key}.{part}": (value.get(part), parts.get(part)) for part in value}
        else:
            leaves[key] = value, parts
    if missing:
        raise ValueError(f"{where}: the config lacks {', '.join(missing)}")
    wrong = [
        f"{name}={value!r} is not {_KINDS[kind]}"
        for name, (value, kind) in leaves.items()
        if kind and not _is_of(value, kind)
    ]
    wrong += [
        f"{name} is not known"
        for name, (_, kind) in leaves.items()
        if kind is None and name.startswith(("stft.", "mel."))
    ]
    if wrong:
        raise ValueError(f"{where}: in the config, {'; '.join(wrong)}")


def _is_of(value: object, kind: type) -> bool:
    """Whether a value from JSON is a text, a table of texts, or a positive number."""
    if kind is str:
        return isinstance(value, str)
    if kind is dict:
        texts = isinstance(value, Mapping) and all(isinstance(v, str) and v for v in value.values())
        return texts and bool(value)
    numeric = isinstance(value, int if kind is int else int | float)
    return numeric and not isinstance(value, bool) and 0 < value < float("inf")
