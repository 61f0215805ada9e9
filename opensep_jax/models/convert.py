"""Published weights to flax parameters, by strict tables of names.

Each network has one `WeightTable`. Conversion fails, naming every problem at once, when a published
tensor has no rule, a parameter stays unfilled or is filled twice, or a shape differs. Small
networks are converted in host memory (`convert`), large ones tensor by tensor onto devices
(`convert_onto_devices`).
"""

import dataclasses
import functools
import gc
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

Transform = Callable[[np.ndarray], np.ndarray]


class WeightTableError(ValueError):
    """Published tensors and parameters do not match; the message names every mismatch."""


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""Where the tensors of one name pattern go.

    Attributes:
        pattern: Regular expression matching the whole published name.
        path: Parameter path joined by `/`; `\1` inserts the first group of the pattern.
        transform: Brings the published layout into ours.
        stacked: Whether the parameter holds all layers along its first axis; the first group of the
            pattern is then the layer.
    """

    pattern: str
    path: str
    transform: Transform = np.asarray
    stacked: bool = False


@dataclasses.dataclass(frozen=True)
class WeightTable:
    """All names of one kind of checkpoint.

    Attributes:
        name: The network, for messages.
        rules: The first rule that matches a name is used.
        skipped: Patterns of published names that our network does not use.
    """

    name: str
    rules: tuple[Rule, ...]
    skipped: tuple[str, ...] = ()


def in_out(weight_oi: np.ndarray) -> np.ndarray:
    """Turns a torch linear weight [out, in] into a flax kernel [in, out]."""
    return np.swapaxes(weight_oi, 0, 1)


def linear(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Rules for weight and bias of a torch linear layer; `pattern` and `path` name the layer."""
    return (
        Rule(rf"{pattern}\.weight", f"{path}/kernel", in_out),
        Rule(rf"{pattern}\.bias", f"{path}/bias"),
    )


def conv(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Rules for weight [out, in, ...] and bias of a torch convolution of any dimensions."""
    return (
        Rule(rf"{pattern}\.weight", f"{path}/kernel", lambda w: np.moveaxis(w, (1, 0), (-2, -1))),
        Rule(rf"{pattern}\.bias", f"{path}/bias"),
    )


def layer_norm(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Rules for a layer norm; old BERT files say gamma and beta for weight and bias."""
    return (
        Rule(rf"{pattern}\.(?:weight|gamma)", f"{path}/scale"),
        Rule(rf"{pattern}\.(?:bias|beta)", f"{path}/bias"),
    )


def convert(
    tensors: Mapping[str, np.ndarray], table: WeightTable, abstract_params: Mapping[str, Any]
) -> dict[str, Any]:
    """Fills a parameter tree from published tensors.

    Args:
        tensors: Published names to arrays. Each is read once and skipped ones never, so a mapping
            that loads on access keeps memory low.
        table: The names of this kind of checkpoint.
        abstract_params: Nested dict of `jax.ShapeDtypeStruct` (or arrays), as `jax.eval_shape` of
            `init` gives; it may also be a dict of several collections.

    Returns:
        A nested dict like `abstract_params`, of numpy arrays in its shapes and dtypes.

    Raises:
        WeightTableError: Anything is unmapped, unfilled, filled twice or of another shape.
    """
    wanted = traverse_util.flatten_dict(dict(abstract_params), sep="/")
    sources, errors = _assign(tensors, table, wanted)
    filled = {path: np.empty(want.shape, want.dtype) for path, want in wanted.items()}
    for path, parts in sources.items():
        for part, (name, rule) in parts.items():
            try:
                filled[path][part] = _fit(rule, tensors, name, filled[path][part].shape)
            except ValueError as error:
                errors.append(f"shape: {name} for {path}: {error}")
    _check(table, errors)
    return traverse_util.unflatten_dict(filled, sep="/")


def convert_onto_devices(
    tensors: Mapping[str, np.ndarray],
    table: WeightTable,
    abstract_params: Mapping[str, Any],
    layout: Mapping[str, Any],
) -> dict[str, Any]:
    """Fills a parameter tree on devices, holding one published tensor at a time on the host.

    Layers of a stacked parameter are written one by one into an array that is already split.

    Args:
        tensors: Published names to arrays, loaded on access; each is read once and then let go.
        table: The names of this kind of checkpoint.
        abstract_params: As for `convert`.
        layout: A `NamedSharding` for each parameter.

    Returns:
        A nested dict like `abstract_params`, of jax arrays in its shapes, dtypes and `layout`.

    Raises:
        WeightTableError: As for `convert`; wrong names are found before anything is read.
    """
    wanted = traverse_util.flatten_dict(dict(abstract_params), sep="/")
    layouts = traverse_util.flatten_dict(dict(layout), sep="/")
    sources, errors = _assign(tensors, table, wanted)
    _check(table, errors)
    filled = {}
    for path, parts in sources.items():
        want, sharding = wanted[path], layouts[path]
        try:
            if _WHOLE in parts:
                name, rule = parts[_WHOLE]
                filled[path] = _place(_fit(rule, tensors, name, want.shape), want.dtype, sharding)
            else:
                filled[path] = jnp.zeros(want.shape, want.dtype, device=sharding)
                for layer, (name, rule) in parts.items():
                    array = _fit(rule, tensors, name, want.shape[1:])
                    filled[path] = _write_layer(filled[path], array, layer, sharding)
        except ValueError as error:
            _check(table, [f"shape: {name} for {path}: {error}"])
    return traverse_util.unflatten_dict({path: filled[path] for path in wanted}, sep="/")


_WHOLE = ...  # the part of a parameter that is filled by one tensor
_Sources = dict[str, dict[Any, tuple[str, Rule]]]  # path: part: published name and its rule


def _assign(
    names: Mapping[str, np.ndarray], table: WeightTable, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[_Sources, list[str]]:
    """Which tensor fills which part of which parameter, and all that does not match."""
    rules = [(re.compile(rule.pattern), rule) for rule in table.rules]
    skipped = [re.compile(pattern) for pattern in table.skipped]
    sources: _Sources = {}
    errors = []
    for name in sorted(names):
        match, rule = next(
            ((m, r) for pattern, r in rules if (m := pattern.fullmatch(name))), (None, None)
        )
        if rule is None:
            if not any(pattern.fullmatch(name) for pattern in skipped):
                errors.append(f"unmapped: {name} has no rule")
            continue
        path = match.expand(rule.path)
        part = int(match[1]) if rule.stacked else _WHOLE
        if path not in wanted or (rule.stacked and part >= wanted[path].shape[0]):
            errors.append(f"unmapped: {name} goes to {path}, which the network does not have")
        elif part in (parts := sources.setdefault(path, {})):
            errors.append(f"filled twice: {path} by {parts[part][0]} and {name}")
        else:
            parts[part] = name, rule
    for path, want in sorted(wanted.items()):
        parts = sources.get(path, {})
        if not parts:
            errors.append(f"unfilled: {path}")
        elif _WHOLE not in parts and len(parts) < want.shape[0]:
            lacking = sorted(set(range(want.shape[0])) - set(parts))
            errors.append(f"unfilled: {path} of layers {lacking}")
    return sources, errors


def _check(table: WeightTable, errors: list[str]) -> None:
    if errors:
        raise WeightTableError(
            f"{table.name}: {len(errors)} mismatches between tensors and parameters:\n  "
            + "\n  ".join(errors)
        )


def _fit(
    rule: Rule, tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    array = rule.transform(tensors[name])
    if array.shape != tuple(shape):
        raise ValueError(f"{array.shape} where {tuple(shape)} is wanted")
    return array


def _place(array: np.ndarray, dtype: np.dtype, sharding: NamedSharding) -> jax.Array:
    """The array on its devices, one piece after the other; copies are made where needed only.

    A mapped file is read-only, and is copied: the parameters must not hold it open.
    """
    copy = True if not array.flags.writeable else None

    def piece(device: jax.Device, index: tuple[slice, ...]) -> jax.Array:
        on_host = np.array(array[index], dtype, order="C", copy=copy)
        on_device = jax.device_put(on_host, device).block_until_ready()
        del on_host
        gc.collect(0)  # only then does jax let go of host memory that it has copied
        return on_device

    indices = sharding.addressable_devices_indices_map(array.shape)
    pieces = [piece(device, index) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)


def _write_layer(
    stacked: jax.Array, array: np.ndarray, layer: int, sharding: NamedSharding
) -> jax.Array:
    of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return _writer(sharding)(stacked, _place(array, stacked.dtype, of_layer), layer)


@functools.cache
def _writer(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    def write(stacked: jax.Array, array: jax.Array, layer: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stacked, array, layer, axis=0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
