"""An ACT of random weights under the published names: each is drawn from its name alone.

The recorded arrays of `tests/golden/act.npz` come from the published code with these weights.
"""

import zlib

import numpy as np

from opensep_jax.models.act import ActConfig


def act_shapes(config: ActConfig) -> dict[str, tuple[int, ...]]:
    """Names and torch shapes of what the published class holds."""
    c = config
    strips, width = c.frames // c.patch_frames, c.encoder_width
    shapes = {
        "encoder.pos_embedding": (1, strips + 1, width),
        "encoder.cls_token": (1, 1, width),
        "encoder.bn0.running_mean": (c.mel_bands,),
        "encoder.bn0.running_var": (c.mel_bands,),
        "encoder.bn0.num_batches_tracked": (),
        "pos_encoder.pe": (c.positions, 1, c.width),
        "word_emb.weight": (c.vocab_size, c.width),
        **_pair("encoder.bn0", c.mel_bands),
        **_pair("encoder.patch_embed.proj", width, c.patch_frames * c.mel_bands),
        **_pair("encoder.mlp_head.0", width),
        **_pair("encoder.mlp_head.1", c.classes, width),
        **_pair("encoder_linear", c.width, c.classes),
        **_pair("dec_fc", c.vocab_size, c.width),
    }
    for i in range(c.encoder_layers):
        layer = f"encoder.blocks.layers.{i}."
        shapes |= _pair(f"{layer}0.norm", width) | _pair(f"{layer}1.norm", width)
        shapes |= _pair(f"{layer}0.fn.qkv", 3 * width, width)
        shapes |= _pair(f"{layer}0.fn.proj.0", width, width)
        shapes |= _pair(f"{layer}1.fn.mlp.fc1", c.encoder_mlp_width, width)
        shapes |= _pair(f"{layer}1.fn.mlp.fc2", width, c.encoder_mlp_width)
    for i in range(c.decoder_layers):
        layer = f"transformer_decoder.layers.{i}."
        for attention in ("self_attn", "multihead_attn"):
            shapes[f"{layer}{attention}.in_proj_weight"] = (3 * c.width, c.width)
            shapes[f"{layer}{attention}.in_proj_bias"] = (3 * c.width,)
            shapes |= _pair(f"{layer}{attention}.out_proj", c.width, c.width)
        shapes |= _pair(f"{layer}linear1", c.mlp_width, c.width)
        shapes |= _pair(f"{layer}linear2", c.width, c.mlp_width)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _pair(layer + norm, c.width)
    return shapes


def draw_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The published code's tensor of that name as the recording had it, float32."""
    last = name.split(".")[-1]
    if last == "pe":
        return _sinusoids(shape[0], shape[2])[:, None]
    n = np.float32(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape))
    if last == "running_mean":
        return -30 + 5 * n
    if last == "running_var":
        return 100 + 20 * np.abs(n)
    if last in ("pos_embedding", "cls_token"):
        return np.float32(0.1) * n
    if len(shape) < 2:
        return 1 + np.float32(0.1) * n if last == "weight" else np.float32(0.05) * n
    return (n / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _pair(name: str, width: int, *inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width, *inputs), f"{name}.bias": (width,)}


def _sinusoids(positions: int, width: int) -> np.ndarray:
    """Sine and cosine in turn, float32 [positions, width]."""
    steps = np.arange(0, width, 2) / width
    angles = np.arange(positions)[:, None] / 10_000**steps
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return waves.reshape(positions, width).astype(np.float32)
