"""The text-conditioned U-Net: one mask per prompt, the encoder computed once per mixture."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# What `UNet(**SIZES[name])` builds. `debug` is for tests, `tiny` is what ships (from the project's
# own study on two CPU cores), `small` is a third wider, `base` has the paper's scale (ours: the
# paper's widths are unknown).
# `models.paper` has the parameter-compatible port of the predecessor's network.
SIZES = {
    "debug": {
        "patch": 4,
        "widths": (8, 8, 16),
        "encoder_blocks": (1, 1, 1),
        "decoder_blocks": (1, 1),
        "bottom_blocks": 1,
        "heads": 2,
        "mlp_ratio": 2,
        "linear_bins": 16,
        "pool_bins": 3,
        "groups": 4,
        "gate_channels": 0,
    },
    "tiny": {
        "patch": 4,
        "widths": (48, 96, 192),
        "encoder_blocks": (1, 1, 1),
        "decoder_blocks": (1, 1),
        "bottom_blocks": 1,
        "heads": 4,
        "mlp_ratio": 3,
        "linear_bins": 128,
        "pool_bins": 3,
        "groups": 8,
        "gate_channels": 0,
    },
    "small": {
        "patch": 4,
        "widths": (64, 128, 256),
        "encoder_blocks": (1, 1, 1),
        "decoder_blocks": (1, 1),
        "bottom_blocks": 1,
        "heads": 4,
        "mlp_ratio": 3,
        "linear_bins": 128,
        "pool_bins": 3,
        "groups": 8,
        "gate_channels": 0,
    },
    "base": {
        "patch": 4,
        "widths": (256, 512, 512, 1024),
        "encoder_blocks": (1, 1, 1, 1),
        "decoder_blocks": (1, 1, 1),
        "bottom_blocks": 1,
        "heads": 8,
        "mlp_ratio": 4,
        "linear_bins": 512,
        "pool_bins": 1,
        "groups": 32,
        "gate_channels": 256,
    },
}


class UNet(nn.Module):
    """Mask logits of P prompts over the magnitude of one mixture.

    The encoder sees no text. Text enters at the bottom by cross-attention over its tokens and, in
    the decoder, by FiLM from their mean; decoder levels add a projection of the encoder's skip,
    which is computed once per mixture. The head sees the top level and, with `gate_channels`, its
    product with features of the mixture's own patch: what a prompt asks for meets what is there at
    the resolution of the spectrogram, as mask and pixel embeddings do in MaskFormer. Normalisation
    is GroupNorm: no statistics across prompts, mixtures or chips. Source: ours, after the
    predecessor's attention U-Net (microsoft/BiModalAudioSeparation) and diffusion U-Nets.

    Attributes:
        patch: side of the square of (pooled) bins x frames that one position of level 0 covers.
        widths: channels of each level; the resolution halves from one to the next.
        encoder_blocks: residual blocks of each level on the way down.
        decoder_blocks: residual blocks of each level but the bottom on the way up.
        bottom_blocks: attention blocks (cross, self, MLP) at the bottom.
        heads: attention heads.
        mlp_ratio: MLP width over model width.
        linear_bins: lowest bins that keep their resolution; the others are averaged.
        pool_bins: how many of the higher bins are averaged into one (1: none).
        groups: groups of GroupNorm.
        gate_channels: products of prompt and mixture in each patch that the head sees (0: none).
        remat: recompute the blocks' activations in the backward pass (saves memory).
        dtype: compute type; parameters, normalisation and softmax are float32.
    """

    patch: int
    widths: Sequence[int]
    encoder_blocks: Sequence[int]
    decoder_blocks: Sequence[int]
    bottom_blocks: int
    heads: int
    mlp_ratio: int
    linear_bins: int
    pool_bins: int
    groups: int
    gate_channels: int
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, level_BFN: jax.Array, text_BPLC: jax.Array, text_mask_BPL: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Draws the masks.

        Args:
            level_BFN: log magnitude of the mixture, float32, about unit scale. F = 2^k + 1 bins, of
                which the last, the Nyquist bin, is not looked at; or F = `linear_bins`.
            text_BPLC: token states of each prompt, any float type.
            text_mask_BPL: bool, True where a token is real; what padding holds has no effect.

        Returns:
            Logits float32 [B, P, F, N], and intermediates: `bottom`, the encoder's last level.
        """
        bins, frames = level_BFN.shape[-2:]
        prompts = text_BPLC.shape[1]
        res_block = nn.remat(ResBlock) if self.remat else ResBlock
        text_block = nn.remat(TextBlock) if self.remat else TextBlock
        block = {"groups": self.groups, "dtype": self.dtype}

        stride = self.patch * 2 ** (len(self.widths) - 1)
        x = pool_frequency(level_BFN, self.linear_bins, self.pool_bins)
        pooled = x.shape[-2]
        x = _pad_to_multiple(_pad_to_multiple(x, -1, stride), -2, stride)
        patches = patchify(x, self.patch).astype(self.dtype)  # [B, F/p, N/p, p*p]
        x = nn.Dense(self.widths[0], dtype=self.dtype, name="stem")(patches)
        x = x + self._frequency_position("position", x)

        skips = []
        for i, width in enumerate(self.widths):
            if i:
                x = nn.Conv(width, (2, 2), 2, dtype=self.dtype, name=f"down{i}")(x)
            for j in range(self.encoder_blocks[i]):
                x = res_block(**block, name=f"encoder{i}_{j}")(x)
            skips.append(x)
        bottom = x  # [B, F/p/2^i, N/p/2^i, C]

        states_PLC = text_BPLC.reshape(-1, *text_BPLC.shape[2:]).astype(self.dtype)
        mask_PL = text_mask_BPL.reshape(-1, text_mask_BPL.shape[-1])
        mean_PC = _masked_mean(states_PLC, mask_PL).astype(self.dtype)
        x = jnp.repeat(
            bottom + self._frequency_position("bottom_position", bottom), prompts, axis=0
        )
        for i in range(self.bottom_blocks):
            x = text_block(self.heads, self.mlp_ratio, self.dtype, name=f"bottom{i}")(
                x, states_PLC, mask_PL
            )
        x = res_block(**block, name="bottom_film")(x, mean_PC)

        for i in reversed(range(len(self.widths) - 1)):
            skip = nn.GroupNorm(self.groups, dtype=self.dtype, name=f"skip_norm{i}")(skips[i])
            skip = nn.Dense(self.widths[i], dtype=self.dtype, name=f"skip{i}")(skip)
            x = nn.Dense(self.widths[i], dtype=self.dtype, name=f"up{i}")(x)
            x = _join(skip, x)
            for j in range(self.decoder_blocks[i]):
                x = res_block(**block, name=f"decoder{i}_{j}")(x, mean_PC)

        x = nn.silu(nn.GroupNorm(self.groups, dtype=self.dtype, name="head_norm")(x))
        if self.gate_channels:
            of_mixture = jnp.concatenate([skips[0], patches], axis=-1)
            x = jnp.concatenate([x, self._gated(x, of_mixture)], axis=-1)
        x = nn.Dense(self.patch**2, dtype=jnp.float32, name="head")(x)
        logits = unpatchify(x, self.patch)[:, :pooled, :frames]  # [B*P, F', N]
        logits = unpool_frequency(logits, bins, self.linear_bins, self.pool_bins)
        return logits.reshape(-1, prompts, bins, frames), {"bottom": bottom}

    def _gated(self, x: jax.Array, of_mixture: jax.Array) -> jax.Array:
        """Maps of `x` [B*P, R, N, C] times those of `of_mixture` [B, R, N, C'], by prompt."""
        asked = nn.Dense(self.gate_channels, dtype=self.dtype, name="gate_prompt")(x)
        there = nn.Dense(self.gate_channels, dtype=self.dtype, name="gate_mixture")(of_mixture)
        of_prompts = asked.reshape(len(there), -1, *there.shape[1:])
        return (of_prompts * there[:, None]).reshape(asked.shape)

    def _frequency_position(self, name: str, x: jax.Array) -> jax.Array:
        """Learned embedding of the frequency row, broadcast over time."""
        shape = (x.shape[1], 1, x.shape[3])
        return self.param(name, nn.initializers.normal(0.02), shape).astype(self.dtype)[None]


class ResBlock(nn.Module):
    """Two 3x3 convolutions with pre-normalisation; the text scales and shifts between them."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text_PC: jax.Array | None = None) -> jax.Array:
        """[B, rows, columns, C] -> the same shape; `text_PC` has a row for each of the batch."""
        width = x.shape[-1]
        conv = {"kernel_size": (3, 3), "dtype": self.dtype}
        h = nn.silu(nn.GroupNorm(self.groups, dtype=self.dtype, name="norm0")(x))
        h = nn.Conv(width, **conv, name="conv0")(h)
        h = nn.GroupNorm(self.groups, dtype=self.dtype, name="norm1")(h)
        if text_PC is not None:
            film = nn.Dense(2 * width, dtype=self.dtype, kernel_init=_SMALL, name="film")(text_PC)
            scale, shift = jnp.split(film[:, None, None, :], 2, axis=-1)
            h = h * (1 + scale) + shift
        h = nn.Conv(width, **conv, kernel_init=_SMALL, name="conv1")(nn.silu(h))
        return x + h


class TextBlock(nn.Module):
    """Cross-attention to the prompt's tokens, self-attention over positions, MLP (all pre-norm)."""

    heads: int
    mlp_ratio: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text_PLC: jax.Array, text_mask_PL: jax.Array) -> jax.Array:
        """[P, rows, columns, C] -> the same shape; text [P, L, C] with its mask [P, L]."""
        batch, rows, columns, width = x.shape
        x = x.reshape(batch, rows * columns, width)
        query = nn.LayerNorm(dtype=self.dtype, name="cross_norm")(x)
        memory = nn.LayerNorm(dtype=self.dtype, name="text_norm")(text_PLC)
        x = x + self._attention("cross", query, memory, text_mask_PL)
        query = nn.LayerNorm(dtype=self.dtype, name="self_norm")(x)
        x = x + self._attention("self", query, query, None)
        h = nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(x)
        h = nn.Dense(self.mlp_ratio * width, dtype=self.dtype, name="mlp0")(h)
        x = x + nn.Dense(width, dtype=self.dtype, kernel_init=_SMALL, name="mlp1")(nn.silu(h))
        return x.reshape(batch, rows, columns, width)

    def _attention(
        self, name: str, query: jax.Array, memory: jax.Array, mask_PL: jax.Array | None
    ) -> jax.Array:
        """Multi-head attention; logits and softmax in float32."""
        width = query.shape[-1]
        split = (self.heads, width // self.heads)
        q, k, v = (
            nn.DenseGeneral(split, dtype=self.dtype, name=f"{name}_{part}")(source)
            for part, source in (("q", query), ("k", memory), ("v", memory))
        )
        mask = None if mask_PL is None else mask_PL[:, None, None, :]
        out = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return nn.DenseGeneral(
            width, axis=(-2, -1), dtype=self.dtype, kernel_init=_SMALL, name=f"{name}_out"
        )(out)


_SMALL = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")


def pool_frequency(x_BFN: jax.Array, linear_bins: int, pool: int) -> jax.Array:
    """Keeps the lowest bins and averages the others, but the Nyquist bin, in groups of `pool`."""
    low, high = x_BFN[:, :linear_bins], x_BFN[:, linear_bins:-1]
    if high.shape[1] % pool:
        raise ValueError(
            f"model.pool_bins={pool} does not divide the {high.shape[1]} bins above "
            f"model.linear_bins={linear_bins}"
        )
    batch, rows, frames = high.shape
    return jnp.concatenate([low, high.reshape(batch, rows // pool, pool, frames).mean(2)], axis=1)


def unpool_frequency(x_BFN: jax.Array, bins: int, linear_bins: int, pool: int) -> jax.Array:
    """Repeats what `pool_frequency` averaged; a dropped Nyquist bin copies its neighbour."""
    low, high = x_BFN[:, :linear_bins], jnp.repeat(x_BFN[:, linear_bins:], pool, axis=1)
    return jnp.concatenate([low, high, x_BFN[:, -1:]], axis=1)[:, :bins]


def patchify(x_BFN: jax.Array, patch: int) -> jax.Array:
    """[B, F, N] -> [B, F/p, N/p, p*p]."""
    batch, bins, frames = x_BFN.shape
    x = x_BFN.reshape(batch, bins // patch, patch, frames // patch, patch)
    return x.transpose(0, 1, 3, 2, 4).reshape(batch, bins // patch, frames // patch, patch**2)


def unpatchify(x: jax.Array, patch: int) -> jax.Array:
    """[B, F/p, N/p, p*p] -> [B, F, N], the inverse of `patchify`."""
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows, columns, patch, patch).transpose(0, 1, 3, 2, 4)
    return x.reshape(batch, rows * patch, columns * patch)


@jax.custom_vjp
def _join(skip: jax.Array, x: jax.Array) -> jax.Array:
    """Sum of `skip` [B, 2H, 2W, C], for every prompt, and `x` [B*P, H, W, C], each position 2 x 2.

    Rows and prompts by one broadcast addition: repeated copies would be written to memory and read
    again. Its gradients are sums of slices, which TPUs read in the layout of the convolutions; for
    reductions they copy the whole gradient into another one.
    """
    batch, rows, columns, width = skip.shape
    fine = skip.reshape(batch, 1, rows // 2, 2, columns, width)
    coarse = jnp.repeat(x, 2, axis=2).reshape(batch, -1, rows // 2, 1, columns, width)
    return (fine + coarse).reshape(-1, rows, columns, width)


def _join_forward(skip: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _join(skip, x), jnp.empty((len(skip), 0))  # its length is all that is needed


def _join_backward(saved: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    of_prompts = grad.reshape(len(saved), -1, *grad.shape[1:])
    to_skip = (of_prompts[:, i].astype(jnp.float32) for i in range(of_prompts.shape[1]))
    to_x = (grad[:, i::2, j::2].astype(jnp.float32) for i in (0, 1) for j in (0, 1))
    return sum(to_skip).astype(grad.dtype), sum(to_x).astype(grad.dtype)


_join.defvjp(_join_forward, _join_backward)


def _pad_to_multiple(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Pads the end of an axis with copies of its last row."""
    width = [(0, 0)] * x.ndim
    width[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, width, mode="edge")


def _masked_mean(states_PLC: jax.Array, mask_PL: jax.Array) -> jax.Array:
    """Mean of the real tokens, float32 [P, C]."""
    weight = mask_PL.astype(jnp.float32)[..., None]
    states = jnp.where(mask_PL[..., None], states_PLC.astype(jnp.float32), 0.0)
    return states.sum(1) / jnp.maximum(weight.sum(1), 1.0)
