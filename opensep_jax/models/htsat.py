"""HTS-AT, the audio encoder of CLAP: a Swin transformer on a spectrogram folded to a square.

Numerically equal to the encoder of microsoft/CLAP and to `ClapAudioModel` of transformers (without
fusion), in inference. Sound goes in as decibels in mel bands; see `opensep_jax.signal.mel`.

Source: Chen et al. 2022 (arXiv 2202.00874), Liu et al. 2021 (arXiv 2103.14030).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

_EPSILON = 1e-5
_OTHER_REGION = -100.0  # added to scores across the seam of a shifted image: as published, not -inf


@dataclasses.dataclass(frozen=True)
class HTSATConfig:
    """Sizes of one encoder.

    Attributes:
        width: Channels of the first stage; they double from one to the next.
        depths: Blocks of each stage; every second one attends within shifted windows.
        heads: Attention heads of each stage.
        bands: Mel bands of the input.
        image: Side of the square that the spectrogram is folded to; a multiple of `bands`.
        patch: Side of a patch of the square, which is one position of the first stage.
        window: Side of an attention window, in positions.
        mlp_ratio: Hidden channels of the MLP over channels.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    bands: int = 64
    image: int = 256
    patch: int = 4
    window: int = 8
    mlp_ratio: int = 4

    @property
    def max_frames(self) -> int:
        """Frames of the input that the square holds."""
        return self.image * self.image // self.bands

    @property
    def latent_width(self) -> int:
        """Channels of the result."""
        return self.width * 2 ** (len(self.depths) - 1)


# The encoder of CLAP (2023) and a test size.
HTSAT_CONFIGS = {
    "clap": HTSATConfig(96, (2, 2, 6, 2), (4, 8, 16, 32)),
    "tiny": HTSATConfig(16, (2, 2, 2, 2), (1, 2, 4, 8)),
}


class HTSAT(nn.Module):
    """Audio encoder.

    Attributes:
        config: Sizes of the network.
        dtype: Type of matrix products; norms, softmax and parameters are float32.
    """

    config: HTSATConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, level_BNM: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes sounds.

        Args:
            level_BNM: float32 [B, N, M], decibels in mel bands, N <= `max_frames`; fewer frames
                are stretched to `max_frames`.

        Returns:
            float32 [B, latent_width], and intermediates: `patches` and `stage_0`, ..., the states
            [B, H, W, C] behind the patch embedding and behind each stage.

        Raises:
            ValueError: N or M do not fit.
        """
        c = self.config
        if level_BNM.shape[1] > c.max_frames or level_BNM.shape[2] != c.bands:
            raise ValueError(
                f"{level_BNM.shape[1]} frames of {level_BNM.shape[2]} bands; the encoder takes "
                f"{c.max_frames} frames of {c.bands} bands at most"
            )
        norm = nn.BatchNorm(use_running_average=True, epsilon=_EPSILON, name="band_norm")
        image_BHW = fold(stretch(norm(level_BNM), c.max_frames), c.image)
        patch = (c.patch, c.patch)
        conv = nn.Conv(c.width, patch, patch, "VALID", dtype=self.dtype, name="patch")
        x = _norm("patch_norm", conv(image_BHW[..., None]), self.dtype)
        states = {"patches": x}
        for s, (depth, heads) in enumerate(zip(c.depths, c.heads, strict=True)):
            for b in range(depth):
                # A single window cannot be shifted.
                shift = c.window // 2 if b % 2 and x.shape[1] > c.window else 0
                x = _Block(
                    heads, c.window, shift, c.mlp_ratio, self.dtype, name=f"stage_{s}_block_{b}"
                )(x)
            if s < len(c.depths) - 1:
                x = _Merge(self.dtype, name=f"stage_{s}_merge")(x)
            states[f"stage_{s}"] = x
        return jnp.mean(_norm("norm", x, jnp.float32), axis=(1, 2)), states


def stretch(level_BNM: jax.Array, frames: int) -> jax.Array:
    """Stretches the time axis by cubic interpolation, first and last frame kept in place.

    As torch's bicubic `interpolate(align_corners=True)` with its constant -0.75; `jax.image.resize`
    has another constant and another grid.

    Args:
        level_BNM: float32 [B, N, M].
        frames: Length of the result.

    Returns:
        float32 [B, frames, M].
    """
    last = level_BNM.shape[1] - 1
    source_N = jnp.arange(frames, dtype=jnp.float32) * jnp.float32(last / max(frames - 1, 1))
    floor_N = jnp.floor(source_N)
    index_N = floor_N.astype(jnp.int32)
    return sum(
        _cubic(jnp.abs(source_N - floor_N - tap))[None, :, None]
        * level_BNM[:, jnp.clip(index_N + tap, 0, last)]
        for tap in range(-1, 3)
    )


def _cubic(distance: jax.Array) -> jax.Array:
    """Keys' kernel with a = -0.75, at distances from 0 to 2."""
    a, d = -0.75, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return jnp.where(d <= 1, near, far)


def fold(level_BNM: jax.Array, image: int) -> jax.Array:
    """Stacks stretches of `image` frames along frequency: [B, N, M] to [B, image, image]."""
    batch, _, bands = level_BNM.shape
    parts = level_BNM.reshape(batch, image // bands, image, bands)
    return jnp.swapaxes(parts, 2, 3).reshape(batch, image, image)


class _Block(nn.Module):
    """Pre-norm transformer block that attends within windows; shifted ones wrap around."""

    heads: int
    window: int
    shift: int
    mlp_ratio: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = _norm("attention_norm", x, self.dtype)
        if self.shift:
            y = jnp.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self._attend(y)
        if self.shift:
            y = jnp.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        y = _norm("mlp_norm", x, self.dtype)
        y = nn.Dense(self.mlp_ratio * width, dtype=self.dtype, name="mlp_up")(y)
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(width, dtype=self.dtype, name="mlp_down")(y)

    def _attend(self, x: jax.Array) -> jax.Array:
        """Attention of every position to its window of the (shifted) image."""
        batch, side, _, width = x.shape
        fused = nn.Dense(3 * width, dtype=self.dtype, name="attention_in")(x)
        windows = to_windows(fused, self.window)  # [B, windows, L, 3 C]
        split = (*windows.shape[:3], self.heads, width // self.heads)
        query, key, value = (part.reshape(split) for part in jnp.split(windows, 3, axis=-1))
        scores = jnp.einsum(
            "bwlhd,bwmhd->bwhlm",
            query * split[-1] ** -0.5,
            key,
            preferred_element_type=jnp.float32,
        )
        scores = scores + self._position_bias()[None, None]
        if self.shift:
            scores = scores + shift_mask(side, self.window, self.shift)[None, :, None]
        weights = nn.softmax(scores).astype(self.dtype)
        mixed = jnp.einsum("bwhlm,bwmhd->bwlhd", weights, value).reshape(*split[:3], width)
        mixed = from_windows(mixed, self.window, side)
        return nn.Dense(width, dtype=self.dtype, name="attention_out")(mixed)

    def _position_bias(self) -> jax.Array:
        """Learned scores by relative position, [H, L, L]."""
        span = 2 * self.window - 1
        init = nn.initializers.truncated_normal(0.02)
        table = self.param("position_bias", init, (span * span, self.heads))
        row_L, column_L = jnp.divmod(jnp.arange(self.window**2), self.window)
        row_LL = row_L[:, None] - row_L[None, :] + self.window - 1
        column_LL = column_L[:, None] - column_L[None, :] + self.window - 1
        return jnp.moveaxis(table[row_LL * span + column_LL], -1, 0)


class _Merge(nn.Module):
    """Halves the resolution: four neighbours become one position of twice the channels."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        y = _norm("norm", jnp.concatenate(four, axis=-1), self.dtype)
        return nn.Dense(2 * x.shape[-1], use_bias=False, dtype=self.dtype, name="reduce")(y)


def to_windows(x: jax.Array, window: int) -> jax.Array:
    """Cuts images [B, H, W, C] into windows [B, windows, window^2, C], all row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return jnp.swapaxes(x, 2, 3).reshape(batch, -1, window * window, channels)


def from_windows(windows: jax.Array, window: int, side: int) -> jax.Array:
    """Undoes `to_windows` for images of `side` x `side`."""
    batch, _, _, channels = windows.shape
    count = side // window
    x = windows.reshape(batch, count, count, window, window, channels)
    return jnp.swapaxes(x, 2, 3).reshape(batch, side, side, channels)


def shift_mask(side: int, window: int, shift: int) -> jax.Array:
    """What keeps apart positions that only the shift's wrapping made neighbours.

    Args:
        side: Height and width of the image.
        window: Side of a window.
        shift: How far the image was rolled up and to the left.

    Returns:
        float32 [windows, window^2, window^2], 0 or -100.
    """
    position = jnp.arange(side)
    band = (position >= side - window).astype(jnp.int32) + (position >= side - shift)
    region = 3 * band[:, None] + band[None, :]
    region_WL = to_windows(region[None, :, :, None], window)[0, :, :, 0]
    return jnp.where(region_WL[:, :, None] == region_WL[:, None, :], 0.0, _OTHER_REGION)


def _norm(name: str, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return nn.LayerNorm(_EPSILON, dtype=jnp.float32, name=name)(x).astype(dtype)
