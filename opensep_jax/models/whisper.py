"""Whisper: a log-mel spectrogram in, a text out.

The encoder reads half a minute of sound; the decoder continues a forced prompt. The network is the
same for transcripts and for captions: a captioner differs in its weights and in its prompt, whose
end names the style of caption. Numerically equal to `WhisperForConditionalGeneration` of
transformers.

Source: Radford et al. 2022 (arXiv 2212.04356); captions: Kadlcik et al. 2023 (arXiv 2305.09690).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from opensep_jax.models.greedy import KeysValues, empty_cache, extend

_HF_KEYS = {  # our field: key of the published config.json
    "vocab_size": "vocab_size",
    "width": "d_model",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "heads": "encoder_attention_heads",
    "mlp_width": "encoder_ffn_dim",
    "mel_bands": "num_mel_bins",
    "encoder_positions": "max_source_positions",
    "decoder_positions": "max_target_positions",
}
_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes of one published network.

    Attributes:
        vocab_size: Rows of the token table, which is also the output layer.
        width: Channels of a state; divisible by `heads`.
        encoder_layers: Number of encoder blocks.
        decoder_layers: Number of decoder blocks.
        heads: Attention heads per block.
        mlp_width: Hidden channels of the MLP.
        mel_bands: Bands of the spectrogram.
        encoder_positions: Encoder states; half the frames of the spectrogram.
        decoder_positions: Rows of the decoder's position table.
    """

    vocab_size: int
    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    mlp_width: int
    mel_bands: int
    encoder_positions: int
    decoder_positions: int

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "WhisperConfig":
        """Reads the sizes from a published `config.json`.

        Args:
            config: The parsed JSON; `model_type` is `whisper`.

        Returns:
            The configuration.

        Raises:
            ValueError: The model is of another family, or uses a variant that is not implemented.
        """
        kind = config.get("model_type")
        if kind != "whisper":
            raise ValueError(f"model_type is {kind!r}; known: 'whisper'")
        missing = [key for key in _HF_KEYS.values() if config.get(key) is None]
        if missing:
            raise ValueError(f"whisper config lacks {missing}")
        expected = {
            "activation_function": "gelu",
            "scale_embedding": False,
            "decoder_attention_heads": config["encoder_attention_heads"],
            "decoder_ffn_dim": config["encoder_ffn_dim"],
            "tie_word_embeddings": True,
        }
        for key, value in expected.items():
            if config.get(key, value) != value:
                raise ValueError(f"{key} is {config[key]!r}; only {value!r} is implemented")
        sizes = {field: config[key] for field, key in _HF_KEYS.items()}
        if sizes["width"] % sizes["heads"]:
            raise ValueError(
                f"d_model {sizes['width']} is not divisible by "
                f"encoder_attention_heads {sizes['heads']}"
            )
        return cls(**sizes)


# whisper-base and whisper-large-v2 as published, and a test size.
WHISPER_CONFIGS = {
    "base": WhisperConfig(51865, 512, 6, 6, 8, 2048, 80, 1500, 448),
    "large_v2": WhisperConfig(51865, 1280, 32, 32, 20, 5120, 80, 1500, 448),
    "tiny": WhisperConfig(64, 16, 2, 2, 2, 32, 8, 20, 32),
}


class Whisper(nn.Module):
    """Encoder and decoder, float32.

    Attributes:
        config: Sizes of the network.
    """

    config: WhisperConfig

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        self.encoder = _Encoder(c)
        self.decoder = _Decoder(c)

    def __call__(self, mel_BNF: jax.Array, ids_BL: jax.Array) -> jax.Array:
        """Predicts every token of texts that are known.

        Args:
            mel_BNF: As for `encode`.
            ids_BL: int32 [B, L], the texts with their prompt; L <= decoder positions.

        Returns:
            Logits float32 [B, L, V]; row l predicts token l + 1.
        """
        cross = self.start(self.encode(mel_BNF))
        empty = self.empty_cache(*ids_BL.shape)
        return self.decoder(ids_BL, 0, empty, cross)[0]

    def encode(self, mel_BNF: jax.Array) -> jax.Array:
        """Computes the states of sounds.

        Args:
            mel_BNF: float32 [B, N, F], scaled log-mel spectrograms of N = 2 x encoder positions.

        Returns:
            float32 [B, N / 2, C].

        Raises:
            ValueError: The spectrogram is of another size.
        """
        c = self.config
        if mel_BNF.shape[1:] != (2 * c.encoder_positions, c.mel_bands):
            raise ValueError(
                f"spectrogram of {mel_BNF.shape[1:]} frames and bands; "
                f"the network takes {(2 * c.encoder_positions, c.mel_bands)}"
            )
        return self.encoder(mel_BNF)

    def start(self, states_BNC: jax.Array) -> tuple[KeysValues, ...]:
        """Keys and values of encoder states, for each decoder layer; the same at every step."""
        return self.decoder.read(states_BNC)

    def empty_cache(self, batch: int, positions: int) -> tuple[KeysValues, ...]:
        """Cache of decoder self-attention before the first token, for `positions` tokens.

        Raises:
            ValueError: `positions` exceeds what the position table holds.
        """
        c = self.config
        most = c.decoder_positions
        return empty_cache(c.decoder_layers, batch, positions, most, c.heads, c.width)

    def step(
        self,
        ids_BL: jax.Array,
        position: jax.Array | int,
        cache: tuple[KeysValues, ...],
        cross: tuple[KeysValues, ...],
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        """Reads some tokens of each text.

        Args:
            ids_BL: int32 [B, L].
            position: int32 scalar, where the first one stands. Position + L must not exceed the
                size of the cache, which is not checked.
            cache: `empty_cache`, or what the step before returned.
            cross: What `start` returned.

        Returns:
            Logits float32 [B, V] of the token that follows, and the cache with these tokens.
        """
        logits_BLV, cache = self.decoder(ids_BL, position, cache, cross)
        return logits_BLV[:, -1], cache


class _Encoder(nn.Module):
    """Two convolutions, the second one of stride 2, and pre-norm blocks."""

    config: WhisperConfig

    @nn.compact
    def __call__(self, mel_BNF: jax.Array) -> jax.Array:
        c = self.config
        x_BNC = nn.gelu(nn.Conv(c.width, (3,), padding=1, name="conv1")(mel_BNF), approximate=False)
        conv = nn.Conv(c.width, (3,), strides=2, padding=1, name="conv2")
        x_BNC = nn.gelu(conv(x_BNC), approximate=False)
        # Published with the weights: recomputed sinusoids differ where those are of half precision.
        shape = (c.encoder_positions, c.width)
        x_BNC += self.param("position", nn.initializers.normal(0.02), shape)[None]
        for i in range(c.encoder_layers):
            x_BNC = _EncoderBlock(c, name=f"layer_{i}")(x_BNC)
        return nn.LayerNorm(_NORM_EPSILON, name="norm")(x_BNC)


class _EncoderBlock(nn.Module):
    """Attention among all states, then MLP."""

    config: WhisperConfig

    def setup(self) -> None:
        self.attention_norm = nn.LayerNorm(_NORM_EPSILON)
        self.attention = _Attention(self.config)
        self.mlp = _Mlp(self.config)

    def __call__(self, x_BNC: jax.Array) -> jax.Array:
        y_BNC = self.attention_norm(x_BNC)
        x_BNC += self.attention(y_BNC, *self.attention.read(y_BNC))
        return x_BNC + self.mlp(x_BNC)


class _Decoder(nn.Module):
    """Token and position tables, pre-norm blocks, and the token table again as output layer."""

    config: WhisperConfig

    def setup(self) -> None:
        c, init = self.config, nn.initializers.normal(0.02)
        self.token = nn.Embed(c.vocab_size, c.width, embedding_init=init)
        self.position = nn.Embed(c.decoder_positions, c.width, embedding_init=init)
        self.blocks = [_DecoderBlock(c, name=f"layer_{i}") for i in range(c.decoder_layers)]
        self.norm = nn.LayerNorm(_NORM_EPSILON)

    def read(self, states_BNC: jax.Array) -> tuple[KeysValues, ...]:
        return tuple(block.cross.read(states_BNC) for block in self.blocks)

    def __call__(
        self,
        ids_BL: jax.Array,
        start: jax.Array | int,
        cache: tuple[KeysValues, ...],
        cross: tuple[KeysValues, ...],
    ) -> tuple[jax.Array, tuple[KeysValues, ...]]:
        query_L = start + jnp.arange(ids_BL.shape[1])
        seen_LM = jnp.arange(cache[0][0].shape[1])[None] <= query_L[:, None]
        x_BLC = self.token(ids_BL) + self.position(query_L)[None]
        layers = []
        for block, old, sound in zip(self.blocks, cache, cross, strict=True):
            x_BLC, new = block(x_BLC, start, seen_LM, old, sound)
            layers.append(new)
        return self.token.attend(self.norm(x_BLC)), tuple(layers)


class _DecoderBlock(nn.Module):
    """Attention to earlier tokens, attention to the sound, then MLP."""

    config: WhisperConfig

    def setup(self) -> None:
        self.attention_norm = nn.LayerNorm(_NORM_EPSILON)
        self.attention = _Attention(self.config)
        self.cross_norm = nn.LayerNorm(_NORM_EPSILON)
        self.cross = _Attention(self.config)
        self.mlp = _Mlp(self.config)

    def __call__(
        self,
        x_BLC: jax.Array,
        start: jax.Array | int,
        seen_LM: jax.Array,
        cache: KeysValues,
        cross: KeysValues,
    ) -> tuple[jax.Array, KeysValues]:
        y_BLC = self.attention_norm(x_BLC)
        cache = extend(cache, self.attention.read(y_BLC), start)
        x_BLC += self.attention(y_BLC, *cache, seen_LM)
        x_BLC += self.cross(self.cross_norm(x_BLC), *cross)
        return x_BLC + self.mlp(x_BLC), cache


class _Attention(nn.Module):
    """Multi-head attention whose keys and values may be of any age."""

    config: WhisperConfig

    def setup(self) -> None:
        width = self.config.width
        self.q = nn.Dense(width)
        self.k = nn.Dense(width, use_bias=False)
        self.v = nn.Dense(width)
        self.out = nn.Dense(width)

    def read(self, x_BMC: jax.Array) -> KeysValues:
        return self._split(self.k(x_BMC)), self._split(self.v(x_BMC))

    def __call__(
        self,
        x_BLC: jax.Array,
        key_BMHD: jax.Array,
        value_BMHD: jax.Array,
        seen_LM: jax.Array | None = None,
    ) -> jax.Array:
        query_BLHD = self._split(self.q(x_BLC))
        mask = None if seen_LM is None else seen_LM[None, None]
        mixed_BLHD = jax.nn.dot_product_attention(query_BLHD, key_BMHD, value_BMHD, mask=mask)
        return self.out(mixed_BLHD.reshape(x_BLC.shape))

    def _split(self, x_BLC: jax.Array) -> jax.Array:
        heads = self.config.heads
        return x_BLC.reshape(*x_BLC.shape[:2], heads, x_BLC.shape[2] // heads)


class _Mlp(nn.Module):
    """Norm and two linear layers with an exact GELU between them."""

    config: WhisperConfig

    @nn.compact
    def __call__(self, x_BLC: jax.Array) -> jax.Array:
        hidden = nn.LayerNorm(_NORM_EPSILON, name="norm")(x_BLC)
        hidden = nn.gelu(nn.Dense(self.config.mlp_width, name="up")(hidden), approximate=False)
        return nn.Dense(self.config.width, name="down")(hidden)
