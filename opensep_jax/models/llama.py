"""LLaMA decoders: token ids and a static key-value cache in, states and logits out.

Serves the LLaMA 2/3/3.1/3.2 architecture of any size, SmolLM2 among them: grouped-query attention,
rotary positions, RMSNorm, SwiGLU, no biases. All layers are one scan over stacked parameters.
Numerically equal to `LlamaForCausalLM` of transformers.

Keys and values live in two places. Those of a prefix that all rows share are held once, without a
batch axis, so that attention to them is one matrix product over all rows; those of a row's own
tokens are written into static slots. Axis letters of this file, beside those of the package:

    N  layers      G  key-value heads         P  tokens of the shared prefix
    L  new tokens  R  query heads of each G   M  slots of a row's own tokens
                   D  channels of a head

Source: Touvron et al. 2023 (arXiv 2307.09288), Grattafiori et al. 2024 (arXiv 2407.21783).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

_HF_KEYS = {  # our field: key of the published config.json
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
}
# The axis, counted from the end, along which a parameter may be split over chips: whole heads, MLP
# channels and words of the vocabulary. Every other parameter is small.
TENSOR_AXES = {
    "query/kernel": -1,
    "key/kernel": -1,
    "value/kernel": -1,
    "attention_out/kernel": -2,
    "mlp_gate/kernel": -1,
    "mlp_up/kernel": -1,
    "mlp_down/kernel": -2,
    "token/embedding": -2,
    "head/embedding": -2,
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of one published decoder.

    Attributes:
        vocab_size: Rows of the token table.
        width: Channels of a token state.
        layers: Number of transformer blocks.
        heads: Query heads per block; a multiple of `kv_heads`.
        kv_heads: Key-value heads per block.
        head_width: Channels of a head; even.
        mlp_width: Hidden channels of the MLP.
        max_positions: Longest sequence, tokens.
        norm_epsilon: Epsilon of every RMSNorm.
        rope_base: Base of the rotary wavelengths.
        rope_divisors: What divides each rotary frequency, `head_width / 2` numbers; empty for ones.
        tied: Whether the head is the token table.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    max_positions: int
    norm_epsilon: float
    rope_base: float
    rope_divisors: tuple[float, ...] = ()
    tied: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are not divisible by {self.kv_heads} kv heads")
        if self.rope_divisors and len(self.rope_divisors) != self.head_width // 2:
            raise ValueError(
                f"{len(self.rope_divisors)} rotary divisors for heads of {self.head_width} channels"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Reads the sizes from a published `config.json`.

        Args:
            config: The parsed JSON; `model_type` is `llama`. Both spellings of the rotary keys are
                read: `rope_theta` with `rope_scaling`, and `rope_parameters`.

        Returns:
            The configuration.

        Raises:
            ValueError: The model is of another family, or uses a variant that is not implemented.
        """
        if config.get("model_type") != "llama":
            raise ValueError(f"model_type is {config.get('model_type')!r}; known: 'llama'")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        base = rope.get("rope_theta", config.get("rope_theta"))
        config = {"num_key_value_heads": config.get("num_attention_heads"), **config}
        missing = [key for key in ("hidden_act", *_HF_KEYS.values()) if config.get(key) is None]
        if base is None:
            missing.append("rope_theta")
        if missing:
            raise ValueError(f"llama config lacks {missing}")
        if config["hidden_act"] != "silu":
            raise ValueError(f"hidden_act is {config['hidden_act']!r}; only 'silu' is implemented")
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                raise ValueError(f"{key} is true; only decoders without biases are implemented")
        sizes = {field: config[key] for field, key in _HF_KEYS.items()}
        head_width = config.get("head_dim") or sizes["width"] // sizes["heads"]
        return cls(
            head_width=head_width,
            rope_base=float(base),
            rope_divisors=_divisors(rope, float(base), head_width),
            tied=bool(config.get("tie_word_embeddings", False)),
            **sizes,
        )


def _divisors(rope: Mapping[str, Any], base: float, head_width: int) -> tuple[float, ...]:
    """What LLaMA 3.1 divides each rotary frequency by, to reach beyond its first training length.

    Short wavelengths stay, long ones are divided by `factor`, those between by something between.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return ()
    if kind != "llama3":
        raise ValueError(f"rope_type is {kind!r}; known: 'default', 'llama3'")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [key for key in keys if rope.get(key) is None]
    if missing:
        raise ValueError(f"rope_type 'llama3' lacks {missing}")
    factor, low, high, original = (float(rope[key]) for key in keys)
    divisors = []
    for frequency in _frequencies(base, head_width):
        turns = original * frequency / (2 * math.pi)  # within the first training length
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)


def _frequencies(base: float, head_width: int) -> list[float]:
    """Rotary frequencies in radians per token, one for each pair of channels."""
    return [base ** (-i / head_width) for i in range(0, head_width, 2)]


# As published, and a test size with eight key-value heads and scaled rotary positions.
_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_CONFIGS = {
    "llama3_8b": LlamaConfig(128256, 4096, 32, 32, 8, 128, 14336, 8192, 1e-5, 5e5),
    "llama31_8b": LlamaConfig(
        128256, 4096, 32, 32, 8, 128, 14336, 131072, 1e-5, 5e5, _divisors(_SCALING, 5e5, 128)
    ),
    "smollm2_135m": LlamaConfig(49152, 576, 30, 9, 3, 64, 1536, 8192, 1e-5, 1e5, tied=True),
    "tiny": LlamaConfig(
        256, 64, 2, 16, 8, 8, 96, 512, 1e-5, 1e4, _divisors(_SCALING, 1e4, 8), tied=False
    ),
}


class Cache(NamedTuple):
    """Keys (rotated) and values: [N, B, G, M, D] of rows, [N, G, P, D] of a shared prefix."""

    key: jax.Array
    value: jax.Array


def empty_cache(config: LlamaConfig, rows: int, slots: int, dtype: jnp.dtype) -> Cache:
    """Zeros for `rows` rows of `slots` tokens."""
    shape = (config.layers, rows, config.kv_heads, slots, config.head_width)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def empty_prefix(config: LlamaConfig, dtype: jnp.dtype) -> Cache:
    """The prefix of no tokens."""
    shape = (config.layers, config.kv_heads, 0, config.head_width)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class _Block(nn.Module):
    """Pre-norm transformer block; one step of the scan over layers."""

    config: LlamaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry, layer, prefix, turns, slot, mask_BLM, prefix_length):
        x_BLC, cache = carry
        c = self.config
        normed = self._norm("attention_norm", x_BLC)
        query = self._heads("query", c.heads, normed, turns)
        key = self._heads("key", c.kv_heads, normed, turns)
        value = self._heads("value", c.kv_heads, normed, None)
        at = (layer, 0, 0, slot, 0)
        # Only the new tokens are written: the cache is carried, not stacked up by the scan.
        cache = Cache(
            jax.lax.dynamic_update_slice(cache.key, key[None], at),
            jax.lax.dynamic_update_slice(cache.value, value[None], at),
        )
        own = Cache(cache.key[layer], cache.value[layer])
        mixed_BLC = self._attend(query, own, prefix, mask_BLM, prefix_length)
        x_BLC += self._dense("attention_out", c.width, mixed_BLC)
        normed = self._norm("mlp_norm", x_BLC)
        hidden = nn.silu(self._dense("mlp_gate", c.mlp_width, normed))
        hidden *= self._dense("mlp_up", c.mlp_width, normed)
        x_BLC += self._dense("mlp_down", c.width, hidden)
        return (x_BLC, cache), None

    def _heads(self, name: str, heads: int, x_BLC: jax.Array, turns: jax.Array | None) -> jax.Array:
        """One projection as [B, heads, L, D], turned by the positions where `turns` are given."""
        B, L, _ = x_BLC.shape
        out = self._dense(name, heads * self.config.head_width, x_BLC)
        out = out.reshape(B, L, heads, -1).swapaxes(1, 2)
        if turns is None:
            return out
        cos, sin = jnp.cos(turns)[:, None], jnp.sin(turns)[:, None]
        first, second = jnp.split(out.astype(jnp.float32), 2, axis=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return jnp.concatenate(turned, axis=-1).astype(self.dtype)

    def _attend(self, query, own, prefix, mask_BLM, prefix_length) -> jax.Array:
        """Grouped-query attention [B, L, heads * D] to the shared prefix and the row's own tokens.

        The queries of a group and of all rows meet the prefix's keys in one matrix product.
        """
        B, heads, L, D = query.shape
        G, P = prefix.key.shape[:2]
        query = query.reshape(B, G, heads // G, L, D)
        product = {"preferred_element_type": jnp.float32}
        shared = jnp.einsum("bgrld,gpd->bgrlp", query, prefix.key, **product)
        alone = jnp.einsum("bgrld,bgmd->bgrlm", query, own.key, **product)
        # The lowest finite number, not -inf: a row without any token must not become NaN.
        lowest = jnp.finfo(jnp.float32).min
        shared = jnp.where((jnp.arange(P) < prefix_length)[None, None, None, None], shared, lowest)
        alone = jnp.where(mask_BLM[:, None, None], alone, lowest)
        scores = jnp.concatenate((shared, alone), axis=-1) * D**-0.5
        shared, alone = jnp.split(nn.softmax(scores).astype(self.dtype), (P,), axis=-1)
        mixed = jnp.einsum("bgrlp,gpd->bgrld", shared, prefix.value)
        mixed += jnp.einsum("bgrlm,bgmd->bgrld", alone, own.value)
        return mixed.reshape(B, heads, L, D).swapaxes(1, 2).reshape(B, L, heads * D)

    def _dense(self, name: str, width: int, x_BLC: jax.Array) -> jax.Array:
        return nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(x_BLC)

    def _norm(self, name: str, x_BLC: jax.Array) -> jax.Array:
        norm = nn.RMSNorm(self.config.norm_epsilon, dtype=jnp.float32, name=name)
        return norm(x_BLC).astype(self.dtype)


class Llama(nn.Module):
    """Decoder of the LLaMA family.

    Attributes:
        config: Sizes of the network.
        dtype: Type of matrix products; norms, rotary angles, softmax and logits are float32.
    """

    config: LlamaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Declares the parts, once for both methods."""
        c = self.config
        self.token = nn.Embed(c.vocab_size, c.width, dtype=self.dtype)
        self.blocks = nn.scan(
            _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, *(nn.broadcast,) * 4),
            length=c.layers,
        )(c, self.dtype)
        self.norm = nn.RMSNorm(c.norm_epsilon, dtype=jnp.float32)
        self.head = self.token if c.tied else nn.Embed(c.vocab_size, c.width, dtype=self.dtype)

    def __call__(
        self,
        ids_BL: jax.Array,
        positions_BL: jax.Array,
        mask_BLM: jax.Array,
        slot: jax.Array | int,
        cache: Cache,
        prefix: Cache,
        prefix_length: jax.Array | int = 0,
    ) -> tuple[jax.Array, Cache]:
        """Computes the states of new tokens and takes them into the cache.

        Args:
            ids_BL: int32 [B, L], token ids in [0, vocab_size).
            positions_BL: int32 [B, L], position of each in its sequence, the prefix included.
            mask_BLM: bool [B, L, M], which of its row's slots each new token sees, itself included.
            slot: Slot of the first new token; the others follow.
            cache: Keys and values of the rows, [N, B, G, M, D] each.
            prefix: Keys and values that every new token sees, [N, G, P, D] each.
            prefix_length: Tokens of the prefix, at most P; what lies behind them is not seen.

        Returns:
            `dtype` [B, L, C], states after the last norm, and the cache with the new tokens.
        """
        c = self.config
        frequencies = jnp.asarray(_frequencies(c.rope_base, c.head_width), jnp.float32)
        if c.rope_divisors:
            frequencies /= jnp.asarray(c.rope_divisors, jnp.float32)
        turns = positions_BL[..., None].astype(jnp.float32) * frequencies[None, None]
        carry = (self.token(ids_BL), cache)
        layers = jnp.arange(c.layers)
        (x_BLC, cache), _ = self.blocks(carry, layers, prefix, turns, slot, mask_BLM, prefix_length)
        return self.norm(x_BLC).astype(self.dtype), cache

    def logits(self, states_BC: jax.Array, ids_BK: jax.Array | None = None) -> jax.Array:
        """Computes float32 logits [B, V] of all tokens, or [B, K] of those in `ids_BK` alone."""
        table = self.head.embedding.astype(self.dtype)
        product = {"preferred_element_type": jnp.float32}
        if ids_BK is None:
            return jnp.einsum("bc,vc->bv", states_BC, table, **product)
        return jnp.einsum("bc,bkc->bk", states_BC, table[ids_BK], **product)


def abstract_params(config: LlamaConfig, dtype: jnp.dtype) -> dict[str, Any]:
    """Shapes of all parameters, in the type they are kept in."""

    def everything(network: Llama, ids_BL: jax.Array) -> jax.Array:
        caches = empty_cache(config, 1, 1, jnp.float32), empty_prefix(config, jnp.float32)
        mask_BLM = jnp.ones((1, 1, 1), bool)
        states_BLC, _ = network(ids_BL, ids_BL, mask_BLM, 0, *caches)
        return network.logits(states_BLC[:, 0])

    def init(ids_BL: jax.Array) -> dict[str, Any]:
        return Llama(config).init(jax.random.key(0), ids_BL, method=everything)["params"]

    shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
