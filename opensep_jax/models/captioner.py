"""A small captioner of the clapcap family: convolutional encoder, mapper to a prefix, GPT-2.

The encoder turns a log-mel spectrogram into a row of tokens; from them a head reads which tags are
heard, and the mapper fills the prefix that the decoder continues as a caption. Unlike clapcap's
mapper, which sees one vector (the mean of the encoder's tokens), this one attends to all tokens.
Source: the structure of microsoft/CLAP's captioner; sizes and encoder are ours.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from opensep_jax.models.gpt2 import GPT2, GPT2Config


@dataclasses.dataclass(frozen=True)
class CaptionerSize:
    """Sizes of one captioner.

    Attributes:
        mels: bands of the log-mel spectrogram.
        conv_widths: channels of each convolution.
        conv_strides: (frames, bands) that one step of each convolution spans.
        conv_residual: whether a residual convolution of the same width follows.
        groups: groups of GroupNorm.
        width: channels of tokens, prefix and words.
        heads: attention heads everywhere.
        mlp_ratio: MLP width over model width in encoder and mapper; the decoder's is 4.
        encoder_blocks: self-attention blocks over the tokens.
        mapper_blocks: blocks (self-attention, cross-attention to the tokens, MLP) of the mapper.
        prefix: vectors that the decoder continues.
        decoder_blocks: blocks of GPT-2.
        max_words: words of a caption at most.
        dropout: rate in training, of tokens and of every branch of mapper and decoder.
    """

    mels: int
    conv_widths: Sequence[int]
    conv_strides: Sequence[tuple[int, int]]
    conv_residual: Sequence[bool]
    groups: int
    width: int
    heads: int
    mlp_ratio: int
    encoder_blocks: int
    mapper_blocks: int
    prefix: int
    decoder_blocks: int
    max_words: int
    dropout: float


# `debug` is for tests, `tiny` is what ships.
SIZES = {
    "debug": CaptionerSize(
        mels=16,
        conv_widths=(8, 8),
        conv_strides=((2, 2), (2, 2)),
        conv_residual=(False, True),
        groups=4,
        width=16,
        heads=2,
        mlp_ratio=2,
        encoder_blocks=1,
        mapper_blocks=1,
        prefix=2,
        decoder_blocks=1,
        max_words=40,
        dropout=0.1,
    ),
    "tiny": CaptionerSize(
        mels=64,
        conv_widths=(32, 64, 96, 160),
        conv_strides=((2, 2), (2, 2), (2, 2), (1, 2)),
        conv_residual=(False, False, True, True),
        groups=8,
        width=160,
        heads=4,
        mlp_ratio=2,
        encoder_blocks=2,
        mapper_blocks=2,
        prefix=8,
        decoder_blocks=2,
        max_words=48,
        dropout=0.1,
    ),
}


class Captioner(nn.Module):
    """Log-mel spectrogram -> tags and the words of a caption.

    Attributes:
        size: of all parts.
        tags: classes of the tag head.
        vocab_size: words that the decoder knows.
    """

    size: CaptionerSize
    tags: int
    vocab_size: int

    def setup(self) -> None:
        """Builds the four parts."""
        s = self.size
        self.encoder = AudioEncoder(s)
        self.tag_head = nn.Dense(2 * self.tags)
        self.mapper = Mapper(s)
        self.decoder = GPT2(
            GPT2Config(
                vocab_size=self.vocab_size,
                width=s.width,
                layers=s.decoder_blocks,
                heads=s.heads,
                mlp_width=4 * s.width,
                max_positions=s.prefix + s.max_words,
                bidirectional_prefix=True,
                dropout=s.dropout,
            )
        )

    def __call__(
        self, level_BNM: jax.Array, ids_BL: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Tags, and predictions of every word of captions that are known.

        Args:
            level_BNM: log-mel spectrogram, float32 [B, N, mels], about unit scale.
            ids_BL: int32 [B, L], words of the captions without the last one.
            deterministic: False in training: dropout draws from the "dropout" key.

        Returns:
            Tag logits [B, K] and word logits [B, L + 1, V], float32.
        """
        tag_BK, prefix_BPC = self.listen(level_BNM, deterministic)
        return tag_BK, self.rate(prefix_BPC, ids_BL, deterministic)

    def listen(
        self, level_BNM: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Tag logits [B, K] and the decoder's prefix [B, P, C]."""
        tokens_BNC = self.encoder(level_BNM, deterministic)
        logit_BNK, weight_BNK = jnp.split(self.tag_head(tokens_BNC), 2, axis=-1)
        tag_BK = jnp.sum(logit_BNK * nn.softmax(weight_BNK, axis=1), axis=1)
        return tag_BK, self.mapper(tokens_BNC, deterministic)

    def rate(
        self, prefix_BPC: jax.Array, ids_BL: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Logits [B, L + 1, V] of the words of captions after a prefix; see `GPT2`."""
        return self.decoder(prefix_BPC, ids_BL, deterministic)


class AudioEncoder(nn.Module):
    """Convolutions, then self-attention over what is left of time."""

    size: CaptionerSize

    @nn.compact
    def __call__(self, level_BNM: jax.Array, deterministic: bool) -> jax.Array:
        """[B, N, M] -> [B, N', C], N' = N over all strides in time, rounded up."""
        s = self.size
        x = level_BNM[..., None]
        layers = zip(s.conv_widths, s.conv_strides, s.conv_residual, strict=True)
        for i, (width, strides, residual) in enumerate(layers):
            x = nn.Conv(width, (3, 3), strides, name=f"conv{i}")(x)
            x = nn.relu(nn.GroupNorm(s.groups, name=f"norm{i}")(x))
            if residual:
                h = nn.Conv(width, (3, 3), name=f"residual{i}")(x)
                x = nn.relu(x + nn.GroupNorm(s.groups, name=f"residual_norm{i}")(h))
        x = nn.Dense(s.width, name="flatten")(x.reshape(*x.shape[:2], -1))
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])[None]
        x = nn.Dropout(s.dropout)(x, deterministic)
        for i in range(s.encoder_blocks):
            x = Block(s, dropout=0.0, name=f"block{i}")(x, None, deterministic)
        return nn.LayerNorm(name="norm")(x)


class Mapper(nn.Module):
    """Learned constants that read the tokens and become the prefix."""

    size: CaptionerSize

    @nn.compact
    def __call__(self, tokens_BNC: jax.Array, deterministic: bool) -> jax.Array:
        """[B, N, C] -> [B, P, C]."""
        s = self.size
        constant_PC = self.param("constant", nn.initializers.normal(0.02), (s.prefix, s.width))
        x = jnp.broadcast_to(constant_PC, (len(tokens_BNC), *constant_PC.shape))
        for i in range(s.mapper_blocks):
            x = Block(s, dropout=s.dropout, name=f"block{i}")(x, tokens_BNC, deterministic)
        return nn.LayerNorm(name="norm")(x)


class Block(nn.Module):
    """Pre-norm self-attention, cross-attention where there is a memory, and MLP."""

    size: CaptionerSize
    dropout: float

    @nn.compact
    def __call__(
        self, x_BLC: jax.Array, memory_BNC: jax.Array | None, deterministic: bool
    ) -> jax.Array:
        """[B, L, C] -> the same shape; memory [B, N, C]."""
        s = self.size
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        h = nn.LayerNorm(name="self_norm")(x_BLC)
        x_BLC = x_BLC + drop(self._attention("self", h, h))
        if memory_BNC is not None:
            h = nn.LayerNorm(name="cross_norm")(x_BLC)
            x_BLC = x_BLC + drop(self._attention("cross", h, memory_BNC))
        h = nn.LayerNorm(name="mlp_norm")(x_BLC)
        h = nn.gelu(nn.Dense(s.mlp_ratio * s.width, name="mlp_up")(h))
        return x_BLC + drop(nn.Dense(s.width, name="mlp_down")(h))

    def _attention(self, name: str, query_BLC: jax.Array, memory_BNC: jax.Array) -> jax.Array:
        heads = (self.size.heads, self.size.width // self.size.heads)
        q, k, v = (
            nn.DenseGeneral(heads, name=f"{name}_{part}")(source)
            for part, source in (("q", query_BLC), ("k", memory_BNC), ("v", memory_BNC))
        )
        out = jax.nn.dot_product_attention(q, k, v)
        return nn.DenseGeneral(self.size.width, axis=(-2, -1), name=f"{name}_out")(out)
