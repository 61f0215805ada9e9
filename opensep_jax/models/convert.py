"""Published weights to flax parameters, by strict tables of names.

Each network has one `WeightTable`. Conversion fails, naming every problem at once, when a published
tensor has no rule, a parameter stays unfilled or is filled twice, or a shape differs.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
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


def layer_norm(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Rules for a layer norm; old BERT files say gamma and beta for weight and bias."""
    return (
        Rule(rf"{pattern}\.(?:weight|gamma)", f"{path}/scale"),
        Rule(rf"{pattern}\.(?:bias|beta)", f"{path}/bias"),
    )


_BERT = r"(?:roberta\.|bert\.)?"
_BERT_EMBED = _BERT + r"embeddings\."
_BERT_LAYER = _BERT + r"encoder\.layer\.(\d+)\."

ROBERTA_TABLE = WeightTable(
    name="RoBERTa/BERT encoder",
    rules=(
        Rule(_BERT_EMBED + r"word_embeddings\.weight", "token/embedding"),
        Rule(_BERT_EMBED + r"position_embeddings\.weight", "position/embedding"),
        Rule(_BERT_EMBED + r"token_type_embeddings\.weight", "type/embedding"),
        *layer_norm(_BERT_EMBED + "LayerNorm", "embedding_norm"),
        *linear(_BERT_LAYER + r"attention\.self\.(query|key|value)", r"layer_\1/\2"),
        *linear(_BERT_LAYER + r"attention\.output\.dense", r"layer_\1/attention_out"),
        *layer_norm(_BERT_LAYER + r"attention\.output\.LayerNorm", r"layer_\1/attention_norm"),
        *linear(_BERT_LAYER + r"intermediate\.dense", r"layer_\1/mlp_up"),
        *linear(_BERT_LAYER + r"output\.dense", r"layer_\1/mlp_down"),
        *layer_norm(_BERT_LAYER + r"output\.LayerNorm", r"layer_\1/mlp_norm"),
    ),
    skipped=(
        _BERT_EMBED + r"(?:position_ids|token_type_ids)",
        _BERT + r"pooler\.dense\.(?:weight|bias)",
        r"lm_head\.(?:bias|(?:dense|layer_norm|decoder)\.(?:weight|bias))",
        r"cls\.seq_relationship\.(?:weight|bias)",
        r"cls\.predictions\.(?:bias|decoder\.(?:weight|bias))",
        r"cls\.predictions\.transform\.(?:dense|LayerNorm)\.(?:weight|bias|gamma|beta)",
    ),
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


_SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_safetensors(path: str | Path) -> Mapping[str, np.ndarray]:
    """Opens published safetensors without reading them.

    The format is eight bytes of header length, a JSON header, and raw little-endian arrays. It is
    read here, without the safetensors library, because that has no bfloat16 for numpy.

    Args:
        path: A `.safetensors` file, or a folder with `model.safetensors.index.json`, with
            `model.safetensors`, or with a single `.safetensors` file.

    Returns:
        Tensor name to array; an access maps that tensor's bytes of the file, read-only.

    Raises:
        ValueError: There is no such file, several without an index, or one is damaged.
    """
    entries: dict[str, _Entry] = {}
    for file in safetensors_files(path):
        entries.update(_read_header(file))
    index = Path(path) / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text("utf-8"))["weight_map"]
        lost = sorted(set(names) - set(entries))
        if lost:
            raise ValueError(f"{index} lists tensors that its files do not hold: {lost}")
        entries = {name: entries[name] for name in names}
    return _LazyTensors(entries)


def safetensors_files(path: str | Path) -> list[Path]:
    """Lists the weight files of a published model.

    Args:
        path: As for `read_safetensors`.

    Returns:
        The files in the order of their names; at least one, all existing.

    Raises:
        ValueError: There is none, one listed by the index is missing, or the choice is ambiguous.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        files = [path / shard for shard in shards]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(f"{index} names missing files: {missing}")
        return files
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = [file.name for file in files]
        raise ValueError(f"{path} must hold model.safetensors or an index; found {found}")
    return files


@dataclasses.dataclass(frozen=True)
class _Entry:
    file: Path
    offset: int  # bytes from the start of the file
    dtype: np.dtype
    shape: tuple[int, ...]


def _read_header(file: Path) -> dict[str, _Entry]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{file} is not a safetensors file or is cut short")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    entries = {}
    for name, info in header.items():
        start, end = info["data_offsets"]
        if info["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{file}: {name} has unknown dtype {info['dtype']}")
        dtype, shape = _SAFETENSORS_DTYPES[info["dtype"]], tuple(info["shape"])
        offset = 8 + length + start
        bytes_ = math.prod(shape) * dtype.itemsize
        if start < 0 or end - start != bytes_ or offset + bytes_ > size:
            raise ValueError(f"{file}: {name} lies outside the file; is it cut short?")
        entries[name] = _Entry(file, offset, dtype, shape)
    return entries


class _LazyTensors(Mapping[str, np.ndarray]):
    """Tensors by name, each mapped from its file when it is asked for."""

    def __init__(self, entries: Mapping[str, _Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        count = math.prod(entry.shape)
        if count == 0:  # an empty range cannot be mapped
            return np.zeros(entry.shape, entry.dtype)
        raw = np.memmap(
            entry.file, np.uint8, "r", entry.offset, shape=(count * entry.dtype.itemsize,)
        )
        return raw.view(np.ndarray).view(entry.dtype).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
