"""Whisper in CTranslate2's format: written here by hand, read back under the hub's names."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from opensep_jax.checkpoint.ctranslate2 import publish_whisper
from opensep_jax.models.safetensors import read_safetensors
from tests.tiny_whisper import CONFIG, random_weights

IDS = {"suppress_ids": [1, 2], "suppress_ids_begin": [220, 50257]}
_DTYPES = {"<f4": 0, "|i1": 1, "<i2": 2, "<i4": 3, "<f2": 4}


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _model(variables: dict[str, np.ndarray], kind: str = "WhisperSpec") -> bytes:
    content = struct.pack("<I", 6) + _text(kind) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        content += _text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += struct.pack("<BI", _DTYPES[array.dtype.str], array.nbytes) + array.tobytes()
    alias = _text("decoder/projection/weight") + _text("decoder/embeddings/weight")
    return content + struct.pack("<I", 1) + alias


def _fused(hub: dict[str, np.ndarray], layer: str, parts: str, kind: str) -> np.ndarray:
    """Projections as CTranslate2 stacks them; keys have a bias of zeros there."""
    width = CONFIG["d_model"]
    zeros = np.zeros(width, np.float16)
    arrays = [hub.get(f"{layer}.{part}_proj.{kind}", zeros) for part in parts]
    return np.concatenate(arrays)


def _variables(hub: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tiny Whisper under CTranslate2's names."""
    variables = {
        "decoder/embeddings/weight": hub["model.decoder.embed_tokens.weight"],
        "decoder/scale_embeddings": np.int8(0),
        "decoder/alignment_heads": np.int16(1),
    }
    for n in "12":
        for kind in ("weight", "bias"):
            variables[f"encoder/conv{n}/{kind}"] = hub[f"model.encoder.conv{n}.{kind}"]
    for side in ("encoder", "decoder"):
        table = hub[f"model.{side}.embed_positions.weight"]
        variables[f"{side}/position_encodings/encodings"] = table
        variables[f"{side}/num_heads"] = np.int16(2)
        norms = {"layer_norm": "layer_norm", "layer_0/ffn/layer_norm": "layers.0.final_layer_norm"}
        attentions = {"self_attention": ("self_attn", ("qkv", ("out",)))}
        if side == "decoder":
            attentions["attention"] = ("encoder_attn", ("q", "kv", ("out",)))
        for theirs, (ours, groups) in attentions.items():
            norms[f"layer_0/{theirs}/layer_norm"] = f"layers.0.{ours}_layer_norm"
            for number, parts in enumerate(groups):
                for kind in ("weight", "bias"):
                    fused = _fused(hub, f"model.{side}.layers.0.{ours}", parts, kind)
                    variables[f"{side}/layer_0/{theirs}/linear_{number}/{kind}"] = fused
        for theirs, ours in norms.items():
            variables[f"{side}/{theirs}/gamma"] = hub[f"model.{side}.{ours}.weight"]
            variables[f"{side}/{theirs}/beta"] = hub[f"model.{side}.{ours}.bias"]
        for number, ours in enumerate(("fc1", "fc2")):
            for kind in ("weight", "bias"):
                tensor = hub[f"model.{side}.layers.0.{ours}.{kind}"]
                variables[f"{side}/layer_0/ffn/linear_{number}/{kind}"] = tensor
    return variables


@pytest.fixture
def hub() -> dict[str, np.ndarray]:
    return {name: array.astype(np.float16) for name, array in random_weights().items()}


def test_every_tensor_and_size_arrives(hub: dict[str, np.ndarray], tmp_path: Path):
    publish_whisper(_model(_variables(hub)), IDS, tmp_path)
    read = read_safetensors(tmp_path)
    assert set(read) == set(hub)
    for name, array in hub.items():
        np.testing.assert_array_equal(read[name], array, strict=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == CONFIG | {"architectures": ["WhisperForConditionalGeneration"]}
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {"suppress_tokens": [1, 2], "begin_suppress_tokens": [220, 50257]}


def test_other_models_are_refused(hub: dict[str, np.ndarray], tmp_path: Path):
    variables = _variables(hub)
    content = _model(variables)
    with pytest.raises(ValueError, match=f"of {len(content) // 2} bytes is cut short"):
        publish_whisper(content[: len(content) // 2], IDS, tmp_path)
    with pytest.raises(ValueError, match="'TransformerSpec' of format 6, not 'WhisperSpec'"):
        publish_whisper(_model(variables, "TransformerSpec"), IDS, tmp_path)
    with pytest.raises(ValueError, match="setting decoder/scale_embeddings is 1, not 0"):
        scaled = variables | {"decoder/scale_embeddings": np.int8(1)}
        publish_whisper(_model(scaled), IDS, tmp_path)
    name = "encoder/layer_0/self_attention/linear_0/bias"
    with pytest.raises(ValueError, match=f"{name}: the keys have a bias"):
        publish_whisper(_model(variables | {name: variables[name] + 1}), IDS, tmp_path)
