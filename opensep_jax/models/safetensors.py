"""Published safetensors, mapped from disk tensor by tensor."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

_DTYPES = {
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
        if info["dtype"] not in _DTYPES:
            raise ValueError(f"{file}: {name} has unknown dtype {info['dtype']}")
        dtype, shape = _DTYPES[info["dtype"]], tuple(info["shape"])
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
