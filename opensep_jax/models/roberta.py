"""RoBERTa and BERT encoders: token ids in, one state per token out.

One module serves the whole family (RoBERTa, XLM-RoBERTa, BERT, MiniLM): the networks differ only in
sizes and in where positions start. There is no pooler and no language-model head. Numerically equal
to `RobertaModel` and `BertModel` of transformers (`last_hidden_state` at unmasked tokens).

Source: Liu et al. 2019 (arXiv 1907.11692), Devlin et al. 2018 (arXiv 1810.04805).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

_HF_KEYS = {  # our field: key of the published config.json
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab": "type_vocab_size",
    "norm_epsilon": "layer_norm_eps",
    "pad_id": "pad_token_id",
}
_ROBERTA_TYPES = ("roberta", "xlm-roberta")


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
    """Sizes of one published encoder.

    Attributes:
        vocab_size: Rows of the token table.
        width: Channels of a token state; divisible by `heads`.
        layers: Number of transformer blocks.
        heads: Attention heads per block.
        mlp_width: Hidden channels of the MLP.
        max_positions: Rows of the position table.
        type_vocab: Rows of the token-type table; row 0 is always used.
        norm_epsilon: Epsilon of every LayerNorm.
        position_offset: Position of the first token: 0 for BERT, `pad_id + 1` for RoBERTa.
        pad_id: Token id of padding.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    type_vocab: int
    norm_epsilon: float
    position_offset: int
    pad_id: int

    @property
    def max_tokens(self) -> int:
        """Longest sequence that the position table allows, in tokens."""
        return self.max_positions - self.position_offset

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "RobertaConfig":
        """Reads the sizes from a published `config.json`.

        Args:
            config: The parsed JSON; `model_type` is `roberta`, `xlm-roberta` or `bert`.

        Returns:
            The configuration.

        Raises:
            ValueError: The model is of another family, or uses a variant that is not implemented.
        """
        kind = config.get("model_type")
        if kind not in (*_ROBERTA_TYPES, "bert"):
            raise ValueError(f"model_type is {kind!r}; known: 'roberta', 'xlm-roberta', 'bert'")
        missing = [key for key in ("hidden_act", *_HF_KEYS.values()) if config.get(key) is None]
        if missing:
            raise ValueError(f"{kind} config lacks {missing}")
        if config["hidden_act"] != "gelu":
            raise ValueError(f"hidden_act is {config['hidden_act']!r}; only 'gelu' is implemented")
        position_type = config.get("position_embedding_type", "absolute")
        if position_type != "absolute":
            raise ValueError(
                f"position_embedding_type is {position_type!r}; only 'absolute' is implemented"
            )
        if config.get("is_decoder") or config.get("add_cross_attention"):
            raise ValueError(f"this {kind} config is a decoder's; only encoders are implemented")
        sizes = {field: config[key] for field, key in _HF_KEYS.items()}
        if sizes["width"] % sizes["heads"]:
            raise ValueError(
                f"hidden_size {sizes['width']} is not divisible by "
                f"num_attention_heads {sizes['heads']}"
            )
        offset = sizes["pad_id"] + 1 if kind in _ROBERTA_TYPES else 0
        return cls(position_offset=offset, **sizes)


# roberta-base as published (note 514 positions for 512 tokens), all-MiniLM-L6-v2, and a test size.
ROBERTA_CONFIGS = {
    "roberta_base": RobertaConfig(50265, 768, 12, 12, 3072, 514, 1, 1e-5, 2, 1),
    "minilm_l6": RobertaConfig(30522, 384, 6, 12, 1536, 512, 2, 1e-12, 0, 0),
    "tiny": RobertaConfig(64, 16, 2, 2, 32, 66, 1, 1e-5, 2, 1),
}


class _Block(nn.Module):
    """Post-norm transformer block: self-attention, then MLP."""

    config: RobertaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLC: jax.Array, mask_BL: jax.Array) -> jax.Array:
        c = self.config
        split = (*x_BLC.shape[:2], c.heads, c.width // c.heads)
        query, key, value = (
            nn.Dense(c.width, dtype=self.dtype, name=name)(x_BLC).reshape(split)
            for name in ("query", "key", "value")
        )
        scores_BHLL = jnp.einsum("blhd,bmhd->bhlm", query, key, preferred_element_type=jnp.float32)
        scores_BHLL = scores_BHLL * split[-1] ** -0.5
        # The lowest finite number, not -inf: a row without any token must not become NaN.
        lowest = jnp.finfo(jnp.float32).min
        scores_BHLL = jnp.where(mask_BL[:, None, None, :], scores_BHLL, lowest)
        weights_BHLL = nn.softmax(scores_BHLL).astype(self.dtype)
        mixed_BLC = jnp.einsum("bhlm,bmhd->blhd", weights_BHLL, value).reshape(x_BLC.shape)
        out_BLC = nn.Dense(c.width, dtype=self.dtype, name="attention_out")(mixed_BLC)
        x_BLC = self._norm("attention_norm", x_BLC + out_BLC)
        hidden = nn.Dense(c.mlp_width, dtype=self.dtype, name="mlp_up")(x_BLC)
        hidden = nn.gelu(hidden, approximate=False)
        out_BLC = nn.Dense(c.width, dtype=self.dtype, name="mlp_down")(hidden)
        return self._norm("mlp_norm", x_BLC + out_BLC)

    def _norm(self, name: str, x_BLC: jax.Array) -> jax.Array:
        norm = nn.LayerNorm(self.config.norm_epsilon, dtype=jnp.float32, name=name)
        return norm(x_BLC).astype(self.dtype)


class Roberta(nn.Module):
    """Encoder of the RoBERTa / BERT family.

    Attributes:
        config: Sizes of the network.
        dtype: Type of matrix products; norms, softmax and parameters are float32.
    """

    config: RobertaConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids_BL: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """Computes one state per token.

        Args:
            ids_BL: int32 [B, L], token ids in [0, vocab_size), special tokens included.
            mask_BL: bool or int [B, L], nonzero at tokens and zero at padding (on either side).

        Returns:
            `dtype` [B, L, C]: states of the last block. Those at padding are finite and
            meaningless; those at tokens do not depend on padding.

        Raises:
            ValueError: L exceeds what the position table holds.
        """
        c = self.config
        if ids_BL.shape[1] > c.max_tokens:
            raise ValueError(f"{ids_BL.shape[1]} tokens; the position table holds {c.max_tokens}")
        mask_BL = mask_BL.astype(bool)
        # Counted over tokens, so padding on the left does not move them. RoBERTa starts behind the
        # padding id and puts padding itself on that id, as its training code did.
        count_BL = jnp.cumsum(mask_BL, axis=1, dtype=jnp.int32) * mask_BL
        positions_BL = jnp.maximum(count_BL + c.position_offset - 1, 0)
        x_BLC = nn.Embed(c.vocab_size, c.width, name="token")(ids_BL)
        x_BLC += nn.Embed(c.max_positions, c.width, name="position")(positions_BL)
        x_BLC += nn.Embed(c.type_vocab, c.width, name="type")(jnp.zeros((1, 1), jnp.int32))
        norm = nn.LayerNorm(c.norm_epsilon, dtype=jnp.float32, name="embedding_norm")
        x_BLC = norm(x_BLC).astype(self.dtype)
        for i in range(c.layers):
            x_BLC = _Block(c, self.dtype, name=f"layer_{i}")(x_BLC, mask_BL)
        return x_BLC
