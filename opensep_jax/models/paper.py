"""The predecessor's U-Net, parameter by parameter: public weights fit, the arithmetic is shared."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from opensep_jax.models.conv import Conv3x3, conv3x3
from opensep_jax.models.upsampled_conv import upsample, upsampled_conv3x3

# What `PaperUNet(**PAPER_SIZES[name])` builds: as published, and a size for tests.
PAPER_SIZES = {
    "paper": {"width": 64, "downs": 7, "features": 32, "heads": 8, "joint_width": 512},
    "paper_debug": {"width": 8, "downs": 5, "features": 4, "heads": 2, "joint_width": 8},
}
SHARED = 4  # levels above the first attention: they see no text

# PyTorch's default for convolutions and dense layers, which the predecessor starts from.
_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class PaperUNet(nn.Module):
    """Mask logits of P prompts over the magnitude of one mixture, as the predecessor draws them.

    Each level halves the resolution; from the fifth on, self-attention and cross-attention to the
    prompt's tokens follow. On the way up every level is doubled in size, passes a residual block
    together with its skip, and is convolved to the width of the level above. The prompt's first
    token, through CLAP's pooler and projection, weighs the features of the last level.

    What sees no text is computed once per mixture: the first four levels on the way down, and on
    the way up those input channels of a residual block that hold the skip. The last convolution and
    the weighing of its features are one linear map for each prompt. In evaluation the result is the
    original's. In training BatchNorm's statistics are those of all mixtures and prompts of a batch,
    where the original has one prompt at a time. Source: microsoft/BiModalAudioSeparation,
    `CondAttUNet` with `sca` blocks, `InnerProd`, and LAION-CLAP's text projection.

    Attributes:
        width: channels of the first level; they double up to eight times as many.
        downs: levels, at least five.
        features: channels of the last level that a prompt weighs.
        heads: attention heads.
        joint_width: width of CLAP's space of texts and sounds.
        remat: recompute the levels' activations in the backward pass (saves memory).
        dtype: compute type; parameters, normalisation and softmax are float32.
    """

    width: int
    downs: int
    features: int
    heads: int
    joint_width: int
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, level_BFN: jax.Array, text_BPLC: jax.Array, text_mask_BPL: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Draws the masks.

        Args:
            level_BFN: log1p of the mixture's magnitude, float32. Bins and frames are filled up
                with silence to multiples of `2**downs`.
            text_BPLC: token states of each prompt, any float type; the first is the pooled one.
            text_mask_BPL: bool, True where a token is real; what padding holds has no effect.

        Returns:
            Logits float32 [B, P, F, N], and intermediates: `shared`, the last level without text.
        """
        bins, frames = level_BFN.shape[-2:]
        prompts = text_BPLC.shape[1]
        down, up = (nn.remat(m) if self.remat else m for m in (Down, Up))
        widths = [self.width * min(2**i, 8) for i in range(self.downs)]
        stride = 2**self.downs
        padding = ((0, 0), (0, -bins % stride), (0, -frames % stride))
        x = BatchNorm(jnp.float32, name="input_norm")(jnp.pad(level_BFN, padding)[..., None])
        x, skips = x.astype(self.dtype), []  # [B, F, N, 1]
        for i in range(SHARED):
            x = down(widths[i], self.dtype, name=f"down{i}")(x)
            skips.append(Skip(widths[i], self.dtype, name=f"skip{i}")(x))
        shared, deep = x, {}

        text_PLC = text_BPLC.reshape(-1, *text_BPLC.shape[2:])
        mask_PL = text_mask_BPL.reshape(-1, text_mask_BPL.shape[-1])
        x = _for_prompts(x, text_PLC)
        for i in range(SHARED, self.downs):
            x = down(widths[i], self.dtype, name=f"down{i}")(x)
            block = TextBlock(self.heads, self.dtype, name=f"text{i}")
            x = block(x, text_PLC.astype(self.dtype), mask_PL)
            innermost = i == self.downs - 1
            deep[i] = Skip(widths[i], self.dtype, name=f"skip{i}")(None if innermost else x)
        for i in reversed(deep):
            x = up(widths[i - 1], self.dtype, name=f"up{i}")(x, deep[i])
        weight_PD = nn.sigmoid(self._joint(text_PLC[:, 0].astype(jnp.float32)))

        sizes = widths[: SHARED - 1], self.features, self.remat, self.dtype
        if prompts == 1 or self.is_mutable_collection("statistics"):
            _, logits = Decoder(*sizes, name="decoder")(skips, x, weight_PD)
            logits = logits.reshape(-1, prompts, *logits.shape[1:])
        else:  # prompt by prompt, so that the largest arrays are there once
            one_by_one = nn.scan(
                Decoder, variable_broadcast="params", split_rngs={"params": False},
                in_axes=1, out_axes=1,
            )  # fmt: skip
            of_prompts = (a.reshape(-1, prompts, *a.shape[1:]) for a in (x, weight_PD))
            _, logits = one_by_one(*sizes, name="decoder")(skips, *of_prompts)
        return logits[:, :, :bins, :frames], {"shared": shared}

    def _joint(self, first_PC: jax.Array) -> jax.Array:
        """Weights of the features, before the sigmoid, from the states of first tokens."""
        pooled = jnp.tanh(nn.Dense(first_PC.shape[-1], kernel_init=_INIT, name="pooler")(first_PC))
        h = nn.relu(nn.Dense(self.joint_width, kernel_init=_INIT, name="projection0")(pooled))
        joint = nn.Dense(self.joint_width, kernel_init=_INIT, name="projection1")(h)
        joint = joint / jnp.maximum(jnp.linalg.norm(joint, axis=-1, keepdims=True), 1e-12)
        return nn.Dense(self.features, kernel_init=nn.initializers.normal(1e-4), name="fc")(joint)


OfSkip = tuple[jax.Array | None, jax.Array, jax.Array]  # see `Skip`


class Decoder(nn.Module):
    """The way up through the levels whose skips see no text."""

    widths: Sequence[int]  # of what its levels but the last give, from the top
    features: int
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, skips: list[OfSkip], x: jax.Array, weight_PD: jax.Array
    ) -> tuple[list[OfSkip], jax.Array]:
        """Skips of B mixtures, P prompts' features and weights -> the skips, logits [P, F, N]."""
        up = nn.remat(Up) if self.remat else Up
        for i in reversed(range(len(skips))):
            width = self.widths[i - 1] if i else None
            x = up(width, self.dtype, name=f"up{i}")(x, skips[i])
        return skips, Head(self.features, self.dtype, name="head")(x, weight_PD)


class BatchNorm(nn.Module):
    """Batch normalisation of images.

    Its statistics are leaves of the parameter tree that get no gradient, so that whatever keeps
    parameters keeps them. A caller that makes the collection `statistics` mutable trains: then the
    batch's own (biased) statistics are used, and are left there under the same path.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, rows, columns, C] -> the same shape in `dtype`; computed in float32."""
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, x.shape[-1:]
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        x = x.astype(jnp.float32)
        if self.is_mutable_collection("statistics"):
            mean = jnp.mean(x, (0, 1, 2))
            var = jnp.mean((x - _per_channel(mean)) ** 2, (0, 1, 2))
            self.put_variable("statistics", "mean", mean)
            self.put_variable("statistics", "var", var)
        else:
            mean, var = jax.lax.stop_gradient((mean, var))
        factor = scale * jax.lax.rsqrt(var + 1e-5)
        return (x * _per_channel(factor) + _per_channel(bias - mean * factor)).astype(self.dtype)


class Down(nn.Module):
    """Halves the resolution; then a residual block of one convolution."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, rows, columns, C] -> [B, rows/2, columns/2, width]."""
        conv = {"kernel_init": _INIT, "dtype": self.dtype}
        x = nn.Conv(self.width, (4, 4), 2, padding=1, use_bias=False, **conv, name="conv")(x)
        x = nn.leaky_relu(BatchNorm(self.dtype, name="norm")(x), 0.2)
        h = Conv3x3(self.width, **conv, name="res_conv")(x)
        return nn.leaky_relu(x + BatchNorm(self.dtype, name="res_norm")(h), 0.2)


class Skip(nn.Module):
    """The part of a level's residual convolution, on the way up, that sees only the skip."""

    width: int  # of what comes up from below; the skip has as many channels
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, skip: jax.Array | None) -> OfSkip:
        """[B, rows, columns, width] -> it in double size, convolved; and the kernel of the rest."""
        channels = self.width if skip is None else 2 * self.width
        kernel = self.param("kernel", _INIT, (3, 3, channels, channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(self.dtype)
        if skip is None:
            return None, _per_channel(bias), kernel
        h = upsampled_conv3x3(skip, kernel[:, :, : self.width]) + _per_channel(bias)
        return upsample(upsample(skip, 1), 2), h, kernel[:, :, self.width :]


class Up(nn.Module):
    """Doubles the resolution; a residual block with the skip; a convolution to `width`."""

    width: int | None  # None: what follows the residual block is the head
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, of_skip: OfSkip) -> jax.Array:
        """[P, rows, columns, C] and what `Skip` gave -> [P, 2 rows, 2 columns, width]."""
        skip, h_skip, kernel = of_skip
        h = upsampled_conv3x3(x, kernel) + _for_prompts(h_skip, x)
        x = upsample(upsample(x, 1), 2)
        if skip is not None:
            x = jnp.concatenate([_for_prompts(skip, x), x], axis=-1)
        x = nn.leaky_relu(x + BatchNorm(self.dtype, name="res_norm")(h), 0.2)
        if self.width is None:
            return x
        shape = (3, 3, x.shape[-1], self.width)
        kernel = self.param("kernel", _INIT, shape).astype(self.dtype)
        return nn.relu(BatchNorm(self.dtype, name="norm")(conv3x3(x, kernel)))


class Head(nn.Module):
    """Convolution to `features` channels and their sum weighed by each prompt, as one map."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, weight_PD: jax.Array) -> jax.Array:
        """[P, F, N, C] and the prompts' weights -> logits float32 [P, F, N]."""
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        kernel = self.param("kernel", _INIT, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", zeros, (self.features,))
        scale, offset = self.param("scale", ones, bias.shape), self.param("offset", zeros, (1,))
        weight_PD = weight_PD * scale[None]
        kernel_PCT = jnp.einsum("yxcd,pd->pcyx", kernel, weight_PD)
        kernel_PCT = kernel_PCT.reshape(*kernel_PCT.shape[:2], 9).astype(self.dtype)
        taps = jnp.einsum("pfnc,pct->pfnt", x, kernel_PCT, preferred_element_type=jnp.float32)
        taps = jnp.pad(jnp.moveaxis(taps, -1, 0), ((0, 0), (0, 0), (1, 1), (1, 1)))
        rows, columns = x.shape[1:3]
        total = (weight_PD @ bias + offset)[:, None, None]
        for t in range(9):
            total = total + taps[t, :, t // 3 : t // 3 + rows, t % 3 : t % 3 + columns]
        return total


class TextBlock(nn.Module):
    """Self-attention over positions, then cross-attention to tokens; an MLP behind each."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text_PLC: jax.Array, text_mask_PL: jax.Array) -> jax.Array:
        """[P, rows, columns, C] -> the same shape; text [P, L, C'] with its mask [P, L]."""
        shape, width = x.shape, x.shape[-1]
        x = x.reshape(shape[0], -1, width)
        h = self._dense("self_qkv", self._norm("self_norm", x), 3 * width)
        x = x + self._attention("self", *jnp.split(h, 3, axis=-1), None)
        x = x + self._mlp("self_mlp", x)
        query = self._dense("cross_q", self._norm("cross_norm", x), width)
        h = self._dense("cross_kv", text_PLC, 2 * width)
        mask = text_mask_PL[:, None, None, :]
        x = x + self._attention("cross", query, *jnp.split(h, 2, axis=-1), mask)
        x = x + self._mlp("cross_mlp", x)
        return x.reshape(shape)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(1e-5, dtype=self.dtype, name=name)(x)

    def _dense(self, name: str, x: jax.Array, width: int) -> jax.Array:
        return nn.Dense(width, dtype=self.dtype, kernel_init=_INIT, name=name)(x)

    def _mlp(self, name: str, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        h = self._dense(f"{name}0", self._norm(f"{name}_norm", x), 2 * width)
        return self._dense(f"{name}1", nn.gelu(h, approximate=False), width)

    def _attention(
        self, name: str, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
    ) -> jax.Array:
        """Multi-head attention; logits and softmax in float32."""
        width = q.shape[-1]
        split = (self.heads, width // self.heads)
        heads = (x.reshape(*x.shape[:2], *split) for x in (q, k, v))
        out = jax.nn.dot_product_attention(*heads, mask=mask)
        return self._dense(f"{name}_out", out.reshape(q.shape), width)


def _for_prompts(x: jax.Array, like: jax.Array) -> jax.Array:
    """What is there once per mixture, for each of its prompts."""
    return jnp.repeat(x, like.shape[0] // x.shape[0], axis=0)


def _per_channel(values_C: jax.Array) -> jax.Array:
    return values_C.reshape(1, 1, 1, -1)
