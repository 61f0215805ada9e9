"""Files of torch.save without torch: what they hold, and what is refused before it can run."""

import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from opensep_jax.models.pth import read_pth

# Pickles as torch.save writes them, instruction by instruction (protocol 2).
HEAD, STOP = b"\x80\x02", b"."


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tensor(key: str, shape: tuple, strides: tuple, offset: int = 0, kind="FloatStorage") -> bytes:
    def numbers(values: tuple) -> bytes:
        return b"(" + b"".join(b"K" + bytes([v]) for v in values) + b"t"

    storage = b"(" + _text("storage") + _global("torch", kind) + _text(key) + _text("cpu")
    storage += b"K\x06tQ"  # its number of values, which the reader takes from the archive
    hooks = _global("collections", "OrderedDict") + b")R"
    arguments = storage + b"K" + bytes([offset]) + numbers(shape) + numbers(strides) + b"\x89"
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + hooks + b"tR"


def _dict(**values: bytes) -> bytes:
    return b"}(" + b"".join(_text(key) + value for key, value in values.items()) + b"u"


def _write(path: Path, body: bytes, compress: int = zipfile.ZIP_STORED, **storages) -> Path:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", HEAD + body + STOP)
        archive.writestr("archive/byteorder", "little")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())
    return path


VALUES = np.arange(6, dtype=np.float32)


def test_reads_a_file_made_by_hand(tmp_path: Path):
    weights = _dict(
        whole=_tensor("s0", (2, 3), (3, 1)),
        transposed=_tensor("s0", (3, 2), (1, 3)),
        part=_tensor("s0", (2,), (2,), offset=3),
        low=_tensor("s1", (2,), (1,), kind="BFloat16Storage"),
        scalar=_tensor("s0", (), (), offset=5),
        empty=_tensor("s0", (0, 4), (4, 1)),
        epoch=b"K\x07",
    )
    low = np.array([1.5, -2], ml_dtypes.bfloat16)
    path = _write(tmp_path / "x.pth", _dict(model=weights, epoch=b"K\x07"), s0=VALUES, s1=low)
    read = read_pth(path, "model")
    assert sorted(read) == ["empty", "low", "part", "scalar", "transposed", "whole"]
    np.testing.assert_array_equal(read["whole"], VALUES.reshape(2, 3), strict=True)
    np.testing.assert_array_equal(read["transposed"], VALUES.reshape(2, 3).T)
    np.testing.assert_array_equal(read["part"], [3, 5])
    np.testing.assert_array_equal(read["low"], low, strict=True)
    assert read["scalar"].shape == () and read["scalar"] == 5
    assert read["empty"].shape == (0, 4)


@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_what_torch_writes(tmp_path: Path, protocol: int):
    torch = pytest.importorskip("torch")
    import argparse

    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5)).half()
    tensors = dict(layer.state_dict())
    tensors |= {"parameter": torch.nn.Parameter(torch.randn(2, 3).t()), "last": torch.eye(4)[1:, 2]}
    for kind in (torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.bool):
        tensors[str(kind)] = torch.arange(5).to(kind)
    model = layer.state_dict()  # an OrderedDict with attributes
    model.update(tensors)
    optimizer = torch.optim.Adam(layer.parameters()).state_dict()
    arguments = argparse.Namespace(rate=0.1, device=torch.device("cpu"))
    saved = {"model": model, "optimizer": optimizer, "args": arguments, "epoch": 3}
    torch.save(saved, tmp_path / "x.pth", pickle_protocol=protocol)
    read = read_pth(tmp_path / "x.pth", "model")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        wanted = tensor.detach().float().numpy()
        np.testing.assert_array_equal(read[name].astype(np.float32), wanted, strict=True)
        assert str(tensor.dtype).removeprefix("torch.") == str(read[name].dtype)


class _Attack:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self._folder),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_functions_are_refused_by_name_and_never_run(tmp_path: Path, protocol: int):
    made = tmp_path / "made"
    content = pickle.dumps({"model": {"w": _Attack(made)}}, protocol)
    pickle.loads(content)
    assert made.is_dir()  # the attack works on those who unpickle
    made.rmdir()
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    with pytest.raises(ValueError, match=r"x\.pth: its pickle names (posix|nt)\.mkdir"):
        read_pth(tmp_path / "x.pth", "model")
    assert not made.exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_global("builtins", "eval") + _text("1") + b"\x85R", "names builtins.eval, which is not"),
        (_global("torch", "load"), "names torch.load, which is not allowed"),
        (_global("torch._utils", "_rebuild_tensor_v2.__globals__"), "not allowed"),
        (b"(S'1'\nios\nsystem\n", "uses STRING"),
        (b"(ios\nsystem\n", "uses INST"),
        (_text("a") + b")R", "calls what is no function"),
        (_global("torch", "FloatStorage") + b")R", "calls torch.FloatStorage"),
        (b"(" + _text("module") + _global("argparse", "Namespace") + b"NNNtQ", "no storage"),
        (b"h\x05", "damaged data.pkl"),
        (b"0", "uses POP"),
        (b"u", "damaged data.pkl"),
        (b"X\xff\xff\xff\xffab", "damaged data.pkl"),
        (b"}(]Nu", "damaged data.pkl"),  # a list as a key
        (b"K\x07", "holds no dict of tensors under 'model'"),
        (_dict(models=b"}"), "holds no dict of tensors under 'model'"),
        (_dict(model=_dict(w=_tensor("s9", (2,), (1,)))), "w lies in archive/data/s9, which"),
        (_dict(model=_dict(w=_tensor("s0", (4, 2), (2, 1)))), "w lies outside of its storage"),
        (_dict(model=_dict(w=_tensor("s0", (2,), (1,), offset=5))), "w lies outside of its"),
        (_dict(model=_dict(w=_tensor("s0", (2, 3), (1,)))), "a tensor without a shape"),
    ],
)
def test_bad_pickles_are_refused(tmp_path: Path, body: bytes, message: str):
    path = _write(tmp_path / "bad.pth", body, s0=VALUES)
    with pytest.raises(ValueError, match=rf"bad\.pth.*{message}"):
        read_pth(path, "model")


def test_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "bad.pth"
    good = _write(tmp_path / "good.pth", _dict(w=_tensor("s0", (6,), (1,))), s0=VALUES)
    assert read_pth(good)["w"].shape == (6,)
    path.write_bytes(good.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"bad\.pth is no file of torch\.save, or is cut short"):
        read_pth(path)
    content = bytearray(good.read_bytes())
    content[content.index(b"PK\1\2") + 6] = 200  # the zip version that reading it needs
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no file of torch.save"):
        read_pth(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValueError, match="torch before 1.6 must be saved again"):
        read_pth(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match="zip archive but no file of torch.save"):
        read_pth(path)
    _write(path, _dict(w=_tensor("s0", (6,), (1,))), zipfile.ZIP_DEFLATED, s0=VALUES)
    with pytest.raises(ValueError, match="is compressed or damaged"):
        read_pth(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", HEAD + b"}" + STOP)
        archive.writestr("a/byteorder", "big")
    with pytest.raises(ValueError, match="big-endian"):
        read_pth(path)
