"""ACT, the audio captioning transformer: a log-mel spectrogram in, a sentence of whole words out.

The encoder is a vision transformer over strips of four frames, pre-trained to name AudioSet
classes; its class scores are what the decoder attends to. Numerically equal to the published code
in inference.

Source: Mei et al. 2021 (arXiv 2107.09817), github.com/XinhaoMei/ACT.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from opensep_jax.models.greedy import KeysValues, empty_cache, extend

_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class ActConfig:
    """Sizes of one network; the defaults are those of all published ones.

    Attributes:
        vocab_size: Words, `<sos>` and `<eos>` included.
        decoder_layers: Decoder blocks: 2, 4 or 6.
        width: Channels of the decoder.
        heads: Attention heads of a decoder block.
        mlp_width: Hidden channels of its MLP.
        positions: Rows of its position table.
        encoder_layers: Encoder blocks.
        encoder_width: Channels of the encoder.
        encoder_heads: Attention heads of an encoder block.
        encoder_mlp_width: Hidden channels of its MLP.
        classes: Scores that the encoder gives per token.
        mel_bands: Bands of the spectrogram.
        frames: Frames of the spectrogram; a multiple of `patch_frames`.
        patch_frames: Frames of an encoder token.
    """

    vocab_size: int
    decoder_layers: int
    width: int = 512
    heads: int = 8
    mlp_width: int = 2048
    positions: int = 2000
    encoder_layers: int = 12
    encoder_width: int = 768
    encoder_heads: int = 12
    encoder_mlp_width: int = 3072
    classes: int = 527
    mel_bands: int = 64
    frames: int = 500
    patch_frames: int = 4

    @classmethod
    def from_tensors(cls, shapes: Mapping[str, tuple[int, ...]]) -> "ActConfig":
        """Counts decoder layers and words, which are all that differs among checkpoints.

        Args:
            shapes: Published tensor names to shapes.

        Raises:
            ValueError: It is not an ACT.
        """
        prefix = "transformer_decoder.layers."
        layers = {name.split(".")[2] for name in shapes if name.startswith(prefix)}
        if "word_emb.weight" not in shapes or not layers:
            raise ValueError(
                f"no tensors word_emb.weight and {prefix}*: this is not a checkpoint of ACT"
            )
        return cls(vocab_size=shapes["word_emb.weight"][0], decoder_layers=len(layers))


# The middle one of three as published, and a test size.
ACT_CONFIGS = {
    "medium": ActConfig(5046, 4),
    "tiny": ActConfig(30, 2, 16, 2, 24, 40, 2, 12, 3, 20, 7, 6, 32, 4),
}


class Act(nn.Module):
    """Encoder and decoder, float32; variables are the collections `params` and `batch_stats`.

    Attributes:
        config: Sizes of the network.
    """

    config: ActConfig

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        self.encoder = _Encoder(c)
        self.bridge = nn.Dense(c.width)
        self.token = nn.Embed(c.vocab_size, c.width)
        self.position = nn.Embed(c.positions, c.width)
        self.blocks = [_DecoderBlock(c, name=f"layer_{i}") for i in range(c.decoder_layers)]
        self.head = nn.Dense(c.vocab_size)

    def __call__(self, level_BNF: jax.Array, ids_BL: jax.Array) -> jax.Array:
        """Predicts what follows texts that are known.

        Args:
            level_BNF: As for `encode`.
            ids_BL: int32 [B, L], texts beginning with `<sos>`.

        Returns:
            Logits float32 [B, V] of the next word.
        """
        cross = self.start(self.encode(level_BNF))
        return self.step(ids_BL, 0, self.empty_cache(*ids_BL.shape), cross)[0]

    def encode(self, level_BNF: jax.Array) -> jax.Array:
        """Computes what the decoder attends to.

        Args:
            level_BNF: float32 [B, N, F], decibels in mel bands; N = frames.

        Returns:
            float32 [B, 1 + N / patch frames, C].

        Raises:
            ValueError: The spectrogram is of another size.
        """
        c = self.config
        if level_BNF.shape[1:] != (c.frames, c.mel_bands):
            raise ValueError(
                f"spectrogram of {level_BNF.shape[1:]} frames and bands; "
                f"the network takes {(c.frames, c.mel_bands)}"
            )
        return nn.relu(self.bridge(self.encoder(level_BNF)))

    def start(self, memory_BMC: jax.Array) -> tuple[KeysValues, ...]:
        """Keys and values of the memory, for each decoder layer; the same at every step."""
        return tuple(block.cross.read(memory_BMC)[1:] for block in self.blocks)

    def empty_cache(self, batch: int, positions: int) -> tuple[KeysValues, ...]:
        """Cache of decoder self-attention before the first token, for `positions` tokens.

        Raises:
            ValueError: `positions` exceeds what the position table holds.
        """
        c = self.config
        return empty_cache(c.decoder_layers, batch, positions, c.positions, c.heads, c.width)

    def step(
        self,
        ids_BL: jax.Array,
        position: jax.Array | int,
        cache: tuple[KeysValues, ...],
        cross: tuple[KeysValues, ...],
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Reads some words of each text.

        Args:
            ids_BL: int32 [B, L].
            position: int32 scalar, where the first one stands. Position + L must not exceed the
                size of the cache, which is not checked.
            cache: `empty_cache`, or what the step before returned.
            cross: What `start` returned.

        Returns:
            Logits float32 [B, V] of the word that follows, and the cache with these words.
        """
        query_L = position + jnp.arange(ids_BL.shape[1])
        seen_LM = jnp.arange(cache[0][0].shape[1])[None] <= query_L[:, None]
        x_BLC = self.token(ids_BL) * self.config.width**0.5 + self.position(query_L)[None]
        layers = []
        for block, old, sound in zip(self.blocks, cache, cross, strict=True):
            x_BLC, new = block(x_BLC, position, seen_LM, old, sound)
            layers.append(new)
        return self.head(x_BLC[:, -1]), tuple(layers)


class _Encoder(nn.Module):
    """Strips of frames and a class token through pre-norm blocks, to class scores."""

    config: ActConfig

    @nn.compact
    def __call__(self, level_BNF: jax.Array) -> jax.Array:
        c = self.config
        norm = nn.BatchNorm(use_running_average=True, epsilon=_NORM_EPSILON, name="band_norm")
        strips = (len(level_BNF), c.frames // c.patch_frames, c.patch_frames * c.mel_bands)
        x_BMC = nn.Dense(c.encoder_width, name="patch")(norm(level_BNF).reshape(strips))
        init = nn.initializers.normal(0.02)
        first_C = self.param("class_token", init, (c.encoder_width,))
        first_B1C = jnp.broadcast_to(first_C, (len(x_BMC), 1, c.encoder_width))
        x_BMC = jnp.concatenate([first_B1C, x_BMC], axis=1)
        x_BMC += self.param("position", init, x_BMC.shape[1:])[None]
        for i in range(c.encoder_layers):
            x_BMC = _EncoderBlock(c, name=f"layer_{i}")(x_BMC)
        x_BMC = nn.LayerNorm(_NORM_EPSILON, name="norm")(x_BMC)
        return nn.Dense(c.classes, name="head")(x_BMC)


class _EncoderBlock(nn.Module):
    """Attention among all tokens, then MLP; norms come first."""

    config: ActConfig

    @nn.compact
    def __call__(self, x_BMC: jax.Array) -> jax.Array:
        c = self.config
        attention = _Attention(c.encoder_width, c.encoder_heads, name="attention")
        y_BMC = nn.LayerNorm(_NORM_EPSILON, name="attention_norm")(x_BMC)
        x_BMC += attention.mix(*attention.read(y_BMC))
        y_BMC = nn.LayerNorm(_NORM_EPSILON, name="mlp_norm")(x_BMC)
        hidden = nn.gelu(nn.Dense(c.encoder_mlp_width, name="mlp_up")(y_BMC), approximate=False)
        return x_BMC + nn.Dense(c.encoder_width, name="mlp_down")(hidden)


class _DecoderBlock(nn.Module):
    """Attention to earlier words, attention to the sound, then MLP; norms come last."""

    config: ActConfig

    def setup(self) -> None:
        c = self.config
        self.attention = _Attention(c.width, c.heads)
        self.cross = _Attention(c.width, c.heads)
        self.mlp_up, self.mlp_down = nn.Dense(c.mlp_width), nn.Dense(c.width)
        self.attention_norm = nn.LayerNorm(_NORM_EPSILON)
        self.cross_norm = nn.LayerNorm(_NORM_EPSILON)
        self.mlp_norm = nn.LayerNorm(_NORM_EPSILON)

    def __call__(
        self,
        x_BLC: jax.Array,
        start: jax.Array | int,
        seen_LM: jax.Array,
        cache: KeysValues,
        cross: KeysValues,
    ) -> tuple[jax.Array, KeysValues]:
        query_BLHD, *new = self.attention.read(x_BLC)
        cache = extend(cache, tuple(new), start)
        x_BLC = self.attention_norm(x_BLC + self.attention.mix(query_BLHD, *cache, seen_LM))
        query_BLHD = self.cross.read(x_BLC)[0]
        x_BLC = self.cross_norm(x_BLC + self.cross.mix(query_BLHD, *cross))
        hidden = nn.gelu(self.mlp_up(x_BLC), approximate=False)
        return self.mlp_norm(x_BLC + self.mlp_down(hidden)), cache


class _Attention(nn.Module):
    """Multi-head attention with one projection for queries, keys and values."""

    width: int
    heads: int

    def setup(self) -> None:
        self.fused = nn.Dense(3 * self.width)
        self.out = nn.Dense(self.width)

    def read(self, x_BLC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        shape = (*x_BLC.shape[:2], self.heads, self.width // self.heads)
        return tuple(part.reshape(shape) for part in jnp.split(self.fused(x_BLC), 3, axis=-1))

    def mix(
        self,
        query_BLHD: jax.Array,
        key_BMHD: jax.Array,
        value_BMHD: jax.Array,
        seen_LM: jax.Array | None = None,
    ) -> jax.Array:
        mask = None if seen_LM is None else seen_LM[None, None]
        mixed_BLHD = jax.nn.dot_product_attention(query_BLHD, key_BMHD, value_BMHD, mask=mask)
        return self.out(mixed_BLHD.reshape(*mixed_BLHD.shape[:2], self.width))
