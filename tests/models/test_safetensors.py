"""Published safetensors: every dtype, several files, damage."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from opensep_jax.models.safetensors import read_safetensors


def test_reads_safetensors_of_all_dtypes(tmp_path: Path):
    tensors = {
        "f32": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
        "f16": np.array([1.5], np.float16),
        "i64": np.arange(3),
        "bool": np.array([True, False]),
        "scalar": np.array(2.5, np.float64),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    read = read_safetensors(tmp_path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor, strict=True)


def test_reads_bfloat16(tmp_path: Path):
    file = tmp_path / "one.safetensors"
    values = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    np.testing.assert_array_equal(read_safetensors(file)["x"], values, strict=True)
    np.testing.assert_array_equal(read_safetensors(tmp_path)["x"], values, strict=True)


def _write_shards(folder: Path) -> None:
    save_file({"a": np.ones(2, np.float32)}, folder / "model-1.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, folder / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_reads_shards_by_their_index(tmp_path: Path):
    _write_shards(tmp_path)
    read = read_safetensors(tmp_path)
    assert list(read) == ["a", "b"]
    np.testing.assert_array_equal(read["b"], np.zeros(3))


def test_damaged_files_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="must hold model.safetensors or an index; found"):
        read_safetensors(tmp_path)
    _write_shards(tmp_path)
    shard = tmp_path / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ValueError, match="b lies outside the file"):
        read_safetensors(tmp_path)
    shard.write_bytes(b"\x00\x00\x00\x7f")
    with pytest.raises(ValueError, match="not a safetensors file or is cut short"):
        read_safetensors(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match="names missing files: .'model-2.safetensors'"):
        read_safetensors(tmp_path)
