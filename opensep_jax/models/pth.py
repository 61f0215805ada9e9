"""Weights that torch.save wrote, read without torch and without running the pickle inside.

A `.pth` file is a zip archive: a pickle that names the tensors, and one file of raw numbers per
storage. Unpickling can call any function of any module. Here the pickle's instructions are only
looked at: a few of them build dicts, lists and tuples, torch's own functions become records of
where a tensor lies, and any other global is refused by its name. Nothing is imported or called.
"""

import dataclasses
import math
import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
# What training scripts store beside weights. It is passed over.
_IGNORED = (
    "argparse Namespace",
    "collections defaultdict",
    "_codecs encode",
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "torch Size",
    "torch device",
)
_GLOBALS = (_DICT, _TENSOR, _PARAMETER, *_STORAGES, *_IGNORED)


def read_pth(path: str | Path, entry: str | None = None) -> Mapping[str, np.ndarray]:
    """Opens weights that `torch.save` wrote (1.6 or newer) without reading the numbers.

    Args:
        path: A `.pth`, `.pt` or `.bin` file.
        entry: Where in the saved dict the weights are, such as "model"; None if it is the weights.

    Returns:
        Tensor name to array; an access maps that tensor's bytes of the file, read-only. What is no
        tensor is left out.

    Raises:
        ValueError: The file is of another kind, damaged, lacks the entry, or its pickle names
            anything but tensors and plain values; then nothing of it was run.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            root, members = _members(path, archive)
            saved = _Pickle(f"{path}", archive.read(f"{root}data.pkl")).value()
    # RuntimeError: zipfile's for kinds of archives that torch never writes.
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path} is no file of torch.save, or is cut short ({error}); files of torch before "
            "1.6 must be saved again with a newer one"
        ) from error
    if entry is not None:
        if not isinstance(saved, dict) or not isinstance(saved.get(entry), dict):
            raise ValueError(f"{path} holds no dict of tensors under {entry!r}")
        saved = saved[entry]
    if not isinstance(saved, dict):
        raise ValueError(f"{path} holds no dict of tensors")
    tensors = {str(name): t for name, t in saved.items() if isinstance(t, _Tensor)}
    storages = {}
    for name, tensor in tensors.items():
        member = f"{root}data/{tensor.storage.key}"
        if member not in members:
            raise ValueError(f"{path}: {name} lies in {member}, which the file lacks")
        offset, size = members[member]
        if not tensor.fits(size):
            raise ValueError(f"{path}: {name} lies outside of its storage {member}")
        storages[tensor.storage.key] = offset
    return _LazyTensors(path, tensors, storages)


def _members(path: Path, archive: zipfile.ZipFile) -> tuple[str, dict[str, tuple[int, int]]]:
    """Folder of the weights in the archive, and offset and size of each member, bytes."""
    pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{path} is a zip archive but no file of torch.save: it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    members = {}
    file_size = os.path.getsize(path)
    with path.open("rb") as stream:
        for info in archive.infolist():
            stream.seek(max(info.header_offset, 0))
            header = stream.read(30)
            skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
            offset = info.header_offset + 30 + skip
            whole = 0 <= info.header_offset and offset + info.file_size <= file_size
            stored = info.compress_type == zipfile.ZIP_STORED
            if header[:4] != b"PK\3\4" or not stored or not whole:
                raise ValueError(f"{path}: {info.filename} is compressed or damaged")
            members[info.filename] = (offset, info.file_size)
    order = f"{root}byteorder"
    if order in members and archive.read(order) != b"little":
        raise ValueError(f"{path} was written on a big-endian machine")
    return root, members


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str  # module and name, with a space between


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str  # name of its file in the archive
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # this and the strides are counted in numbers
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def fits(self, size: int) -> bool:
        """Whether all of it lies within `size` bytes."""
        if math.prod(self.shape) == 0:
            return True
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return 0 <= self.offset and (last + 1) * self.storage.dtype.itemsize <= size


class _Ignored:
    """Stands for an object that is passed over."""


class _Mark:
    """On the stack, where the items of a container begin."""


class _Pickle:
    """A machine for those instructions of a pickle that state dicts are made of."""

    _LITERALS = frozenset(
        "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
        "BINBYTES SHORT_BINBYTES SHORT_BINSTRING BINSTRING".split()
    )
    _CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
    _TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

    def __init__(self, file: str, content: bytes) -> None:
        self._file = file
        self._content = content
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def value(self) -> Any:
        """The pickled object.

        Raises:
            ValueError: See `read_pth`.
        """
        try:
            for opcode, argument, _ in pickletools.genops(self._content):
                self._step(opcode.name, argument)
            (value,) = self._stack
        except _Refused as refusal:
            raise ValueError(f"{self._file}: {refusal}; nothing was run") from None
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._file}: damaged data.pkl ({error!r})") from error
        return value

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in self._LITERALS:
            stack.append(argument)
        elif name in self._CONSTANTS:
            stack.append(self._CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            stack.append(_Mark)
        elif name in self._TUPLES:
            stack.append(tuple(self._pop(self._TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
            if isinstance(stack[-1], dict):
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self._global(argument or " ".join(self._pop(2))))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._pop(2)
            stack.append(self._build(function, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes; those of a state dict are the versions of its modules
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"its pickle uses {name}, which no file of weights needs")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError("the stack is empty")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _Mark:
            items.append(item)
        return items[::-1]

    def _global(self, name: str) -> _Global:
        if name not in _GLOBALS:
            raise _Refused(f"its pickle names {name.replace(' ', '.')}, which is not allowed")
        return _Global(name)

    def _storage(self, reference: tuple) -> _Storage:
        kind, storage, key, _, _ = reference
        if kind != "storage" or storage.name not in _STORAGES:
            raise _Refused(f"its pickle refers to {kind!r}, which is no storage")
        return _Storage(str(key), _STORAGES[storage.name])

    def _build(self, function: Any, arguments: tuple) -> Any:
        name = function.name if isinstance(function, _Global) else ""
        if name == _DICT:
            return dict(*arguments)
        if name == _PARAMETER:
            return arguments[0]
        if name == _TENSOR:
            storage, offset, shape, strides = arguments[:4]
            plain = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
            if not isinstance(storage, _Storage) or len(shape) != len(strides) or not plain:
                raise ValueError("a tensor without a shape or a storage")
            return _Tensor(storage, offset, shape, strides)
        if name in _IGNORED:
            return _Ignored()
        raise _Refused(f"its pickle calls {name.replace(' ', '.') or 'what is no function'}")


class _Refused(Exception):
    """The pickle asks for something that is not allowed; the message says what."""


class _LazyTensors(Mapping[str, np.ndarray]):
    """Tensors by name, each mapped from the file when it is asked for."""

    def __init__(
        self, file: Path, tensors: Mapping[str, _Tensor], storages: Mapping[str, int]
    ) -> None:
        self._file = file
        self._tensors = tensors
        self._storages = storages  # offset of each in the file, bytes

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        dtype = tensor.storage.dtype
        if math.prod(tensor.shape) == 0:  # an empty range cannot be mapped
            return np.zeros(tensor.shape, dtype)
        start = self._storages[tensor.storage.key] + tensor.offset * dtype.itemsize
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
        size = (last + 1) * dtype.itemsize
        raw = np.memmap(self._file, np.uint8, "r", start, shape=(size,))
        return np.lib.stride_tricks.as_strided(
            raw.view(np.ndarray).view(dtype),
            tensor.shape,
            [stride * dtype.itemsize for stride in tensor.strides],
            writeable=False,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
