"""Published GGUF files: metadata, and tensors that are dequantised when they are asked for."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from opensep_jax.models.llama import LlamaConfig

_ROWS = 1024  # dequantised at a time: what the library needs beside its result stays small

_KEYS = {  # our field: key of the metadata, behind the architecture's name
    "vocab_size": "vocab_size",
    "width": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "mlp_width": "feed_forward_length",
    "max_positions": "context_length",
    "norm_epsilon": "attention.layer_norm_rms_epsilon",
    "rope_base": "rope.freq_base",
}


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """An opened file.

    Attributes:
        path: The file.
        metadata: Its key-value pairs, arrays as lists.
        tensors: Name to array [out, in], float32 or the type asked for; an access reads and
            dequantises that tensor.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    def llama_config(self) -> LlamaConfig:
        """Sizes of the decoder that the file holds.

        Raises:
            ValueError: It holds another architecture, or lacks a key.
        """
        kind = self.metadata.get("general.architecture")
        if kind != "llama":
            raise ValueError(f"{self.path}: architecture is {kind!r}; known: 'llama'")
        found = {field: self.metadata.get(f"llama.{key}") for field, key in _KEYS.items()}
        if found["vocab_size"] is None:
            found["vocab_size"] = len(self.metadata.get("tokenizer.ggml.tokens", ())) or None
        missing = [f"llama.{_KEYS[field]}" for field, value in found.items() if value is None]
        if missing:
            raise ValueError(f"{self.path}: metadata lacks {missing}")
        head_width = found["width"] // found["heads"]
        rotary = self.metadata.get("llama.rope.dimension_count", head_width)
        if rotary != head_width:
            raise ValueError(f"{self.path}: {rotary} rotary channels in heads of {head_width}")
        divisors = self.tensors.get("rope_freqs.weight", ())
        return LlamaConfig(
            kv_heads=self.metadata.get("llama.attention.head_count_kv", found["heads"]),
            head_width=head_width,
            rope_divisors=tuple(float(value) for value in divisors),
            tied="output.weight" not in self.tensors,
            **found,
        )


def read_gguf(path: str | Path, dtype: np.dtype = np.float32) -> GgufFile:
    """Opens a GGUF file; its tensors stay on disk.

    Args:
        path: The file.
        dtype: Type that tensors are given in.

    Returns:
        Metadata and tensors.

    Raises:
        ValueError: It is not a GGUF file, or is damaged.
    """
    path = Path(path)
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a GGUF file or is cut short: {error}") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return GgufFile(path, metadata, _LazyTensors(path, reader.tensors, np.dtype(dtype)))


class _LazyTensors(Mapping[str, np.ndarray]):
    """Tensors by name, each dequantised when it is asked for."""

    def __init__(self, path: Path, tensors: list, dtype: np.dtype) -> None:
        self._path = path
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._dtype = dtype

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        out = np.empty(tuple(int(size) for size in reversed(tensor.shape)), self._dtype)
        for start in range(0, len(out), _ROWS):
            rows = slice(start, start + _ROWS)
            try:
                out[rows] = gguf.dequantize(tensor.data[rows], tensor.tensor_type)
            except NotImplementedError as error:
                raise ValueError(
                    f"{self._path}: {name} is stored as {tensor.tensor_type.name}, "
                    "which cannot be read"
                ) from error
        return out

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
