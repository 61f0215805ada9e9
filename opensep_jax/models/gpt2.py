"""GPT-2 behind a prefix of vectors: what a captioner says about a sound.

The prefix takes the first positions and the words follow. Training sees whole captions at once
(`__call__`); decoding sees the prefix (`prefill`) and then one word at a time (`step`), with keys
and values of earlier positions in a cache of fixed size. Numerically equal to `GPT2LMHeadModel` of
transformers fed with `inputs_embeds`.

Source: Radford et al. 2019, "Language models are unsupervised multitask learners".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Keys and values of each layer, [B, T, H, D]: T positions, of which those not yet seen are zeros.
Cache = tuple[tuple[jax.Array, jax.Array], ...]

_HF_KEYS = {  # our field: key of the published config.json
    "vocab_size": "vocab_size",
    "width": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "max_positions": "n_positions",
    "norm_epsilon": "layer_norm_epsilon",
}


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes of one decoder.

    Attributes:
        vocab_size: Rows of the token table, which is also the output layer.
        width: Channels of a token state; divisible by `heads`.
        layers: Number of transformer blocks.
        heads: Attention heads per block.
        mlp_width: Hidden channels of the MLP.
        max_positions: Rows of the position table; prefix and words together.
        norm_epsilon: Epsilon of every LayerNorm.
        bidirectional_prefix: Whether prefix vectors see those behind them; the published network
            is causal throughout.
        dropout: Rate on embeddings and on each branch's output in training.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    norm_epsilon: float = 1e-5
    bidirectional_prefix: bool = False
    dropout: float = 0.0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "GPT2Config":
        """Reads the sizes from a published `config.json`.

        Args:
            config: The parsed JSON; `model_type` is `gpt2`.

        Returns:
            The configuration, causal and without dropout.

        Raises:
            ValueError: The model is of another family, or uses a variant that is not implemented.
        """
        kind = config.get("model_type")
        if kind != "gpt2":
            raise ValueError(f"model_type is {kind!r}; known: 'gpt2'")
        missing = [key for key in _HF_KEYS.values() if config.get(key) is None]
        if missing:
            raise ValueError(f"gpt2 config lacks {missing}")
        expected = {
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        }
        for key, value in expected.items():
            if config.get(key, value) != value:
                raise ValueError(f"{key} is {config[key]!r}; only {value!r} is implemented")
        sizes = {field: config[key] for field, key in _HF_KEYS.items()}
        if sizes["width"] % sizes["heads"]:
            raise ValueError(f"n_embd {sizes['width']} is not divisible by n_head {sizes['heads']}")
        return cls(mlp_width=config.get("n_inner") or 4 * sizes["width"], **sizes)


# gpt2 as published, and a test size.
GPT2_CONFIGS = {
    "gpt2": GPT2Config(50257, 768, 12, 12, 3072, 1024),
    "tiny": GPT2Config(61, 16, 2, 2, 32, 24),
}


class GPT2(nn.Module):
    """Decoder with tied output layer.

    Attributes:
        config: Sizes of the network.
        dtype: Type of matrix products and of the cache; norms, softmax, logits and parameters are
            float32.
    """

    config: GPT2Config
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Declares the parameters."""
        c = self.config
        init = nn.initializers.normal(0.02)
        self.token = nn.Embed(c.vocab_size, c.width, embedding_init=init)
        self.position = nn.Embed(c.max_positions, c.width, embedding_init=init)
        self.blocks = [_Block(c, self.dtype, name=f"layer_{i}") for i in range(c.layers)]
        self.norm = nn.LayerNorm(c.norm_epsilon, dtype=jnp.float32)
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self, prefix_BPC: jax.Array, ids_BL: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Predicts every word of captions that are known.

        Args:
            prefix_BPC: Float [B, P, C], P >= 1.
            ids_BL: int32 [B, L], words in [0, vocab_size); what pads a caption at its end changes
                no prediction before it.
            deterministic: False in training: dropout draws from the "dropout" key.

        Returns:
            Logits float32 [B, L + 1, V]; row l predicts word l, the last one what follows.

        Raises:
            ValueError: P + L exceeds what the position table holds.
        """
        prefix = prefix_BPC.shape[1]
        x_BLC = jnp.concatenate([prefix_BPC, self.token(ids_BL)], axis=1)
        x_BLC, _ = self._run(x_BLC, 0, prefix, None, deterministic)
        return self._logits(x_BLC[:, prefix - 1 :])

    def prefill(self, prefix_BPC: jax.Array, positions: int) -> tuple[jax.Array, Cache]:
        """Reads the prefix.

        Args:
            prefix_BPC: Float [B, P, C].
            positions: Size of the cache: P and the words that `step` will be given.

        Returns:
            Logits float32 [B, V] of the first word, and the cache.

        Raises:
            ValueError: `positions` is less than P or exceeds what the position table holds.
        """
        c = self.config
        batch, prefix, _ = prefix_BPC.shape
        if not prefix <= positions <= c.max_positions:
            raise ValueError(
                f"{positions} positions; the prefix takes {prefix} and the position table holds "
                f"{c.max_positions}"
            )
        empty = jnp.zeros((batch, positions, c.heads, c.width // c.heads), self.dtype)
        x_BLC, cache = self._run(prefix_BPC, 0, prefix, ((empty, empty),) * c.layers)
        return self._logits(x_BLC[:, -1]), cache

    def step(
        self, ids_B: jax.Array, position: jax.Array | int, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Reads one word of each caption.

        Args:
            ids_B: int32 [B], words.
            position: int32 scalar, where they stand: P for the first ones. Must be less than the
                size of the cache, which is not checked.
            cache: What `prefill` or the step before returned.

        Returns:
            Logits float32 [B, V] of the next word, and the cache with this one.
        """
        x_BLC = self.token(ids_B)[:, None]
        x_BLC, cache = self._run(x_BLC, position, 0, cache)
        return self._logits(x_BLC[:, 0]), cache

    def _run(
        self,
        x_BLC: jax.Array,
        start: jax.Array | int,
        prefix: int,
        cache: Cache | None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """States of embeddings from position `start` on; the first `prefix` are the prefix."""
        c = self.config
        length = x_BLC.shape[1]
        if length > c.max_positions:
            raise ValueError(f"{length} positions; the position table holds {c.max_positions}")
        query_L = start + jnp.arange(length)
        key_M = jnp.arange(length if cache is None else cache[0][0].shape[1])
        seen_LM = key_M[None, :] <= query_L[:, None]
        if c.bidirectional_prefix:
            seen_LM |= key_M[None, :] < prefix
        x_BLC = (x_BLC + self.position(query_L)[None]).astype(self.dtype)
        x_BLC = self.dropout(x_BLC, deterministic)
        layers = []
        for i, block in enumerate(self.blocks):
            old = None if cache is None else cache[i]
            x_BLC, new = block(x_BLC, seen_LM, old, start, deterministic)
            layers.append(new)
        return self.norm(x_BLC), None if cache is None else tuple(layers)

    def _logits(self, x: jax.Array) -> jax.Array:
        return jnp.einsum(
            "...c,vc->...v",
            x.astype(self.dtype),
            self.token.embedding.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )


class _Block(nn.Module):
    """Pre-norm transformer block: self-attention, then MLP."""

    config: GPT2Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x_BLC: jax.Array,
        seen_LM: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None,
        start: jax.Array | int,
        deterministic: bool,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        c = self.config
        drop = nn.Dropout(c.dropout, deterministic=deterministic)
        fused = self._dense("attention_in", 3 * c.width)(self._norm("attention_norm", x_BLC))
        split = (*x_BLC.shape[:2], c.heads, c.width // c.heads)
        query, key, value = (part.reshape(split) for part in jnp.split(fused, 3, axis=-1))
        if cache is not None:
            key = jax.lax.dynamic_update_slice_in_dim(cache[0], key, start, axis=1)
            value = jax.lax.dynamic_update_slice_in_dim(cache[1], value, start, axis=1)
        scores_BHLM = jnp.einsum("blhd,bmhd->bhlm", query, key, preferred_element_type=jnp.float32)
        scores_BHLM = scores_BHLM * split[-1] ** -0.5
        scores_BHLM = jnp.where(seen_LM[None, None], scores_BHLM, jnp.finfo(jnp.float32).min)
        weights_BHLM = nn.softmax(scores_BHLM).astype(self.dtype)
        mixed_BLC = jnp.einsum("bhlm,bmhd->blhd", weights_BHLM, value).reshape(x_BLC.shape)
        x_BLC += drop(self._dense("attention_out", c.width)(mixed_BLC))
        hidden = self._dense("mlp_up", c.mlp_width)(self._norm("mlp_norm", x_BLC))
        hidden = nn.gelu(hidden, approximate=True)
        return x_BLC + drop(self._dense("mlp_down", c.width)(hidden)), (key, value)

    def _dense(self, name: str, width: int) -> nn.Dense:
        init = nn.initializers.normal(0.02)
        return nn.Dense(width, dtype=self.dtype, kernel_init=init, name=name)

    def _norm(self, name: str, x_BLC: jax.Array) -> jax.Array:
        norm = nn.LayerNorm(self.config.norm_epsilon, dtype=jnp.float32, name=name)
        return norm(x_BLC).astype(self.dtype)
