"""A Whisper small enough for offline tests: a hub folder of random weights, 0.4 s windows."""

import json
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file

SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|transcribe|>",
    "<|notimestamps|>",
)
CONFIG = {
    "architectures": ["WhisperForAudioCaptioning"],
    "model_type": "whisper",
    "activation_function": "gelu",
    "vocab_size": 264,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 32,
}


def write_tiny_whisper(folder: Path) -> Path:
    """Writes config, weights and a tokenizer of single bytes, as a model hub would hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(random_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def random_weights() -> dict[str, np.ndarray]:
    """Tensors under the hub's names, float32."""
    c, rng = CONFIG, np.random.default_rng(0)
    width, shapes = c["d_model"], {}

    def pair(name: str, outputs: int, *inputs: int) -> None:
        shapes[f"model.{name}.weight"] = (outputs, *inputs)
        shapes[f"model.{name}.bias"] = (outputs,)

    pair("encoder.conv1", width, c["num_mel_bins"], 3)
    pair("encoder.conv2", width, width, 3)
    shapes["model.encoder.embed_positions.weight"] = (c["max_source_positions"], width)
    shapes["model.decoder.embed_positions.weight"] = (c["max_target_positions"], width)
    shapes["model.decoder.embed_tokens.weight"] = (c["vocab_size"], width)
    for side in ("encoder", "decoder"):
        pair(f"{side}.layer_norm", width)
        layer = f"{side}.layers.0."
        for attention in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
            for part in ("q_proj", "v_proj", "out_proj"):
                pair(f"{layer}{attention}.{part}", width, width)
            shapes[f"model.{layer}{attention}.k_proj.weight"] = (width, width)
            pair(f"{layer}{attention}_layer_norm", width)
        pair(f"{layer}fc1", c[f"{side}_ffn_dim"], width)
        pair(f"{layer}fc2", width, c[f"{side}_ffn_dim"])
        pair(f"{layer}final_layer_norm", width)
    return {n: np.float32(0.5 * rng.standard_normal(shape)) for n, shape in shapes.items()}
