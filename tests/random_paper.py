"""The predecessor's separator of random weights under the published names, drawn by name alone.

The recorded arrays of `tests/golden/paper.npz` come from the published code with these weights:
python -m tests.predecessor CHECKOUT writes them.
"""

import zlib

import numpy as np

SIZES = {"width": 8, "downs": 6, "features": 4, "heads": 2, "joint_width": 16}
TEXT_WIDTH = 24
_CLAP = "net_clap.model.model."


def paper_shapes(
    *, width: int, downs: int, features: int, heads: int, joint_width: int, text_width: int
) -> dict[str, tuple[int, ...]]:
    """Names and torch shapes of its separator, and of what follows CLAP's text encoder."""
    del heads  # no shape depends on them
    widths = [width * min(2**i, 8) for i in range(downs)]
    shapes = {
        **_norm("net_sound.bn0", 1),
        **_pair(_CLAP + "text_branch.pooler.dense", text_width, text_width),
        **_pair(_CLAP + "text_projection.0", joint_width, text_width),
        **_pair(_CLAP + "text_projection.2", joint_width, joint_width),
        **_pair("net_clap.fc", features, joint_width),
        "net_synthesizer.scale": (features,),
        "net_synthesizer.bias": (1,),
    }
    for i, own in enumerate(widths):
        level = "net_sound.unet_block." + "submodule." * i
        outer = widths[i - 1] if i else 1
        inner = own if i == downs - 1 else 2 * own
        shapes[f"{level}downconv.weight"] = (own, outer, 4, 4)
        shapes |= _norm(f"{level}downnorm", own)
        shapes |= _pair(f"{level}downresblock.res_layers.0.0", own, own, 3, 3)
        shapes |= _norm(f"{level}downresblock.res_layers.0.1", own)
        shapes |= _pair(f"{level}upresblock.res_layers.0.0", inner, inner, 3, 3)
        shapes |= _norm(f"{level}upresblock.res_layers.0.1", inner)
        shapes[f"{level}upconv.weight"] = (outer if i else features, inner, 3, 3)
        shapes |= _norm(f"{level}upnorm", outer) if i else {f"{level}upconv.bias": (features,)}
        if i >= 4:
            shapes |= _attention(f"{level}ca_blocks.0.", own, text_width)
    return shapes


def draw_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name as the recording had it, float32."""
    n = np.float32(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape))
    if name.endswith("running_var"):
        return 0.5 + np.abs(n)
    if name.endswith("num_batches_tracked"):
        return np.asarray(1)
    if len(shape) > 1:
        return n / np.float32(np.prod(shape[1:])) ** 0.5
    return 0.2 * n + (name.endswith(("weight", "scale")))


def draw(**sizes: int) -> dict[str, np.ndarray]:
    """All tensors."""
    return {name: draw_tensor(name, shape) for name, shape in paper_shapes(**sizes).items()}


def golden_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Two mixtures' log1p magnitudes [B, F, N] and three prompts for each [B, P, L, C]."""
    rng = np.random.default_rng(0)
    level_BFN = np.float32(3 * rng.uniform(size=(2, 64, 128)))
    return level_BFN, np.float32(rng.standard_normal((2, 3, 5, TEXT_WIDTH)))


def _pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    statistics = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return _pair(name, width) | statistics | {f"{name}.num_batches_tracked": ()}


def _attention(block: str, width: int, text_width: int) -> dict[str, tuple[int, ...]]:
    shapes = _pair(f"{block}norm1", width)
    for kind in ("sa_block.", "ca_block."):
        for part in ("norm1", "norm2"):
            shapes |= _pair(f"{block}{kind}{part}", width)
        shapes |= _pair(f"{block}{kind}attn.proj", width, width)
        shapes |= _pair(f"{block}{kind}mlp.fc1", 2 * width, width)
        shapes |= _pair(f"{block}{kind}mlp.fc2", width, 2 * width)
    shapes |= _pair(f"{block}sa_block.attn.qkv", 3 * width, width)
    shapes |= _pair(f"{block}ca_block.attn.q", width, width)
    return shapes | _pair(f"{block}ca_block.attn.kv", 2 * width, text_width)
