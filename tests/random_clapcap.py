"""A captioner of random weights under the published names: each is drawn from its name alone.

The recorded arrays of `tests/golden` come from the published code with these weights.
"""

import zlib
from collections.abc import Iterator

import numpy as np

from opensep_jax.models.clapcap import ClapcapConfig

HTSAT = "clap.base.htsat."
SAMPLES = 308_700
STOP_IDS = {"tiny": 17, "clapcap": 220}


def clapcap_shapes(config: ClapcapConfig) -> dict[str, tuple[int, ...]]:
    """Names and torch shapes of what the published class holds, parts that we skip included."""
    shapes = dict(_encoder_shapes(config))
    width, latent = config.embedding, config.encoder.latent_width
    shapes["clap.projection.linear1.weight"] = (width, latent)
    shapes["clap.projection.linear2.weight"] = (width, width)
    shapes |= _pair("clap.projection.layer_norm", width)
    shapes |= _mapper_shapes(config)
    shapes |= _decoder_shapes(config)
    return shapes


def _pair(name: str, width: int, *inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width, *inputs), f"{name}.bias": (width,)}


def _encoder_shapes(config: ClapcapConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    c = config.encoder
    shapes = {
        f"{HTSAT}spectrogram_extractor.stft.conv_{p}.weight": (513, 1, 1024)
        for p in ("real", "imag")
    }
    shapes[f"{HTSAT}logmel_extractor.melW"] = (513, 64)
    shapes |= _pair(f"{HTSAT}bn0", c.bands)
    shapes |= {f"{HTSAT}bn0.running_mean": (c.bands,), f"{HTSAT}bn0.running_var": (c.bands,)}
    shapes[f"{HTSAT}bn0.num_batches_tracked"] = ()
    shapes |= _pair(f"{HTSAT}patch_embed.proj", c.width, 1, c.patch, c.patch)
    shapes |= _pair(f"{HTSAT}patch_embed.norm", c.width)
    side = c.image // c.patch
    for s, (depth, heads) in enumerate(zip(c.depths, c.heads, strict=True)):
        width = c.width * 2**s
        for b in range(depth):
            block = f"{HTSAT}layers.{s}.blocks.{b}."
            shapes |= _pair(f"{block}norm1", width) | _pair(f"{block}norm2", width)
            shapes |= _pair(f"{block}attn.qkv", 3 * width, width)
            shapes |= _pair(f"{block}attn.proj", width, width)
            shapes[f"{block}attn.relative_position_bias_table"] = (225, heads)
            shapes[f"{block}attn.relative_position_index"] = (64, 64)
            shapes |= _pair(f"{block}mlp.fc1", 4 * width, width)
            shapes |= _pair(f"{block}mlp.fc2", width, 4 * width)
            if b % 2 and side > c.window:
                shapes[f"{block}attn_mask"] = ((side // c.window) ** 2, 64, 64)
        if s < len(c.depths) - 1:
            shapes[f"{HTSAT}layers.{s}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= _pair(f"{HTSAT}layers.{s}.downsample.norm", 4 * width)
            side //= 2
    shapes |= _pair(f"{HTSAT}norm", c.latent_width)
    shapes |= _pair(f"{HTSAT}tscam_conv", 527, c.latent_width, 2, 3)
    shapes |= _pair(f"{HTSAT}head", 527, 527)
    yield from shapes.items()


def _mapper_shapes(config: ClapcapConfig) -> dict[str, tuple[int, ...]]:
    width = config.decoder.width
    shapes = {"clap_project.prefix_const": (config.prefix, width)}
    shapes |= _pair("clap_project.linear", config.prefix * width, config.embedding)
    for i in range(config.mapper_layers):
        layer = f"clap_project.transformer.layers.{i}."
        shapes |= _pair(f"{layer}norm1", width) | _pair(f"{layer}norm2", width)
        shapes[f"{layer}attn.to_queries.weight"] = (width, width)
        shapes[f"{layer}attn.to_keys_values.weight"] = (2 * width, width)
        shapes |= _pair(f"{layer}attn.project", width, width)
        shapes |= _pair(f"{layer}mlp.fc1", 2 * width, width)
        shapes |= _pair(f"{layer}mlp.fc2", width, 2 * width)
    return shapes


def _decoder_shapes(config: ClapcapConfig) -> dict[str, tuple[int, ...]]:
    c = config.decoder
    words = (c.vocab_size, c.width)
    shapes = {"gpt.transformer.wte.weight": words, "gpt.lm_head.weight": words}
    shapes["gpt.transformer.wpe.weight"] = (c.max_positions, c.width)
    shapes |= _pair("gpt.transformer.ln_f", c.width)
    for i in range(c.layers):
        layer = f"gpt.transformer.h.{i}."
        shapes |= _pair(f"{layer}ln_1", c.width) | _pair(f"{layer}ln_2", c.width)
        for name, inputs, outputs in (
            ("attn.c_attn", c.width, 3 * c.width),
            ("attn.c_proj", c.width, c.width),
            ("mlp.c_fc", c.width, c.mlp_width),
            ("mlp.c_proj", c.mlp_width, c.width),
        ):
            shapes[f"{layer}{name}.weight"] = (inputs, outputs)
            shapes[f"{layer}{name}.bias"] = (outputs,)
    return shapes


def draw_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The published code's tensor of that name as the recording had it, float32."""
    name = "gpt.transformer.wte.weight" if name == "gpt.lm_head.weight" else name
    last = name.split(".")[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    n = np.float32(values)
    if last == "running_mean":
        return -30 + 5 * n
    if last == "running_var":
        return 100 + 20 * np.abs(n)
    scales = {"relative_position_bias_table": 0.3, "prefix_const": 0.5}
    if ".wte." in name or ".wpe." in name:
        return np.float32(0.1 if ".wte." in name else 0.05) * n
    if last in scales:
        return np.float32(scales[last]) * n
    if len(shape) < 2:
        return 1 + np.float32(0.1) * n if last == "weight" else np.float32(0.05) * n
    fan_in = shape[0] if ".c_" in name else np.prod(shape[1:])
    return (n / np.sqrt(fan_in)).astype(np.float32)


def golden_waves() -> np.ndarray:
    """The two sounds of the recordings, float32 [2, 308700] at 44.1 kHz."""
    rng = np.random.default_rng(0)
    t = np.arange(SAMPLES) / 44_100
    noise_BT = rng.standard_normal(SAMPLES), rng.standard_normal(SAMPLES)
    chirp = 0.2 * np.sin(2 * np.pi * 3000 * t * (1 + 0.05 * t)) * (t % 1 < 0.5)
    tones = 0.3 * np.sin(2 * np.pi * 440 * t) + chirp + 0.01 * noise_BT[0]
    bursts = 0.05 * noise_BT[1] * np.exp(-5 * (t % 0.7))
    return np.stack([tones, bursts]).astype(np.float32)
