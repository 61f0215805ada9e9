"""Published weights to flax parameters, by strict tables of names.

Each network has one `WeightTable`. Conversion fails, naming every problem at once, when a published
tensor has no rule, a parameter stays unfilled or is filled twice, or a shape differs.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

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
    """

    pattern: str
    path: str
    transform: Transform = np.asarray


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
    rules = [(re.compile(rule.pattern), rule) for rule in table.rules]
    skipped = [re.compile(pattern) for pattern in table.skipped]
    source_of: dict[str, str] = {}
    filled: dict[str, np.ndarray] = {}
    errors = []
    for name in sorted(tensors):
        match, rule = next(
            ((m, r) for pattern, r in rules if (m := pattern.fullmatch(name))), (None, None)
        )
        if rule is None:
            if not any(pattern.fullmatch(name) for pattern in skipped):
                errors.append(f"unmapped: {name} has no rule")
            continue
        path = match.expand(rule.path)
        if path not in wanted:
            errors.append(f"unmapped: {name} goes to {path}, which the network does not have")
        elif path in source_of:
            errors.append(f"filled twice: {path} by {source_of[path]} and {name}")
        else:
            source_of[path] = name
            try:
                filled[path] = _fit(rule.transform(tensors[name]), wanted[path])
            except ValueError as error:
                errors.append(f"shape: {name} for {path}: {error}")
    errors += [f"unfilled: {path}" for path in sorted(wanted) if path not in source_of]
    if errors:
        raise WeightTableError(
            f"{table.name}: {len(errors)} mismatches between tensors and parameters:\n  "
            + "\n  ".join(errors)
        )
    return traverse_util.unflatten_dict({path: filled[path] for path in wanted}, sep="/")


def _fit(array: np.ndarray, want: jax.ShapeDtypeStruct) -> np.ndarray:
    if array.shape != tuple(want.shape):
        raise ValueError(f"{array.shape} where {tuple(want.shape)} is wanted")
    # A contiguous copy: the parameters must not hold a mapped file open.
    return np.array(array, dtype=want.dtype, order="C")
