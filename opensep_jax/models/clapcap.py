"""The ms-CLAP captioner ("clapcap", 2023): HTS-AT, a projection, a mapper to a prefix, and GPT-2.

Numerically equal to `ClapCaptionModel` of microsoft/CLAP in inference. Only the audio half of CLAP
takes part.

Source: Elizalde et al. 2023 (arXiv 2309.05767), Deshmukh et al. 2023 (arXiv 2309.07372).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from opensep_jax.models.beam import Beams, beam_search
from opensep_jax.models.gpt2 import GPT2, GPT2_CONFIGS, Cache, GPT2Config
from opensep_jax.models.htsat import HTSAT, HTSAT_CONFIGS, HTSATConfig

_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class ClapcapConfig:
    """Sizes of one captioner.

    Attributes:
        encoder: Sizes of the audio encoder.
        decoder: Sizes of the decoder.
        embedding: Channels of a sound's embedding.
        prefix: Vectors that tell the decoder what the sound is.
        mapper_layers: Blocks of the mapper.
        mapper_heads: Attention heads of each.
        mapper_mlp_ratio: Hidden channels of their MLPs over channels.
    """

    encoder: HTSATConfig
    decoder: GPT2Config
    embedding: int
    prefix: int
    mapper_layers: int
    mapper_heads: int
    mapper_mlp_ratio: int = 2


# clapcap as published (config_clapcap.yml), and a test size.
CLAPCAP_CONFIGS = {
    "clapcap": ClapcapConfig(HTSAT_CONFIGS["clap"], GPT2_CONFIGS["gpt2"], 1024, 40, 8, 8),
    "tiny": ClapcapConfig(HTSAT_CONFIGS["tiny"], GPT2Config(301, 64, 2, 4, 256, 128), 64, 10, 2, 8),
}


class ClapcapNetwork(nn.Module):
    """Captioner: decibels in mel bands to the logits of words.

    Attributes:
        config: Sizes of the network.
        dtype: Type of matrix products; norms, softmax, logits and parameters are float32.
    """

    config: ClapcapConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        self.encoder = HTSAT(c.encoder, self.dtype)
        self.projection = _Projection(c.embedding, self.dtype)
        self.mapper = _Mapper(c, self.dtype)
        self.decoder = GPT2(c.decoder, self.dtype)

    def __call__(self, level_BNM: jax.Array, ids_BL: jax.Array) -> jax.Array:
        """Predicts every word of known captions; see `GPT2`.

        Args:
            level_BNM: float32 [B, N, M], decibels in mel bands.
            ids_BL: int32 [B, L], words.

        Returns:
            Logits float32 [B, L + 1, V].
        """
        return self.decoder(self.prefix(level_BNM)[0], ids_BL)

    def prefix(self, level_BNM: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes what the decoder is told about sounds.

        Args:
            level_BNM: float32 [B, N, M], decibels in mel bands.

        Returns:
            Prefix vectors [B, P, C], and intermediates: those of the encoder, its result `latent`
            and the `embedding` before it is brought to unit length.
        """
        latent_BC, states = self.encoder(level_BNM)
        embedding_BC = self.projection(latent_BC)
        states |= {"latent": latent_BC, "embedding": embedding_BC}
        unit_BC = embedding_BC / jnp.linalg.norm(embedding_BC, axis=-1, keepdims=True)
        return self.mapper(unit_BC), states

    def prefill(self, prefix_BPC: jax.Array, positions: int) -> tuple[jax.Array, Cache]:
        """See `GPT2.prefill`."""
        return self.decoder.prefill(prefix_BPC, positions)

    def step(
        self, ids_B: jax.Array, position: jax.Array | int, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """See `GPT2.step`."""
        return self.decoder.step(ids_B, position, cache)


def search_captions(
    network: ClapcapNetwork,
    variables: dict,
    prefix_BPC: jax.Array,
    *,
    beams: int,
    max_tokens: int,
    stop_id: int,
    temperature: float | jax.Array = 1.0,
) -> Beams:
    """Captions sounds by beam search; works inside jit.

    Args:
        network: The captioner.
        variables: Its collections `params` and `batch_stats`.
        prefix_BPC: Float [B, P, C], from the network's `prefix`.
        beams: Beams of the search.
        max_tokens: Longest caption, stop word included.
        stop_id: The word that ends a caption.
        temperature: Divides logits; more than 0.

    Returns:
        The captions of each sound, the best first.
    """
    prefix = prefix_BPC.shape[1]
    # The last word of a caption is not read: nothing follows.
    positions = prefix + max_tokens - 1
    logits_BV, cache = network.apply(variables, prefix_BPC, positions, method="prefill")

    def step(ids_R: jax.Array, index: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return network.apply(variables, ids_R, prefix + index, cache, method="step")

    return beam_search(
        logits_BV,
        cache,
        step,
        beams=beams,
        max_tokens=max_tokens,
        stop_id=stop_id,
        temperature=temperature,
    )


class _Projection(nn.Module):
    """Brings an encoding into the space that CLAP's text shares."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BC: jax.Array) -> jax.Array:
        first = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="first")(x_BC)
        second = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="second")(
            nn.gelu(first, approximate=False)
        )
        return nn.LayerNorm(_EPSILON, dtype=jnp.float32, name="norm")(first + second)


class _Mapper(nn.Module):
    """Turns one vector into the prefix: learned vectors read it from as many drawn out of it."""

    config: ClapcapConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BC: jax.Array) -> jax.Array:
        c = self.config
        width = c.decoder.width
        drawn = nn.Dense(c.prefix * width, dtype=self.dtype, name="draw")(x_BC)
        drawn_BPC = drawn.reshape(-1, c.prefix, width)
        learned_PC = self.param("learned", nn.initializers.normal(1.0), (c.prefix, width))
        learned_BPC = jnp.broadcast_to(learned_PC.astype(self.dtype), drawn_BPC.shape)
        x_BLC = jnp.concatenate([drawn_BPC, learned_BPC], axis=1)
        for i in range(c.mapper_layers):
            x_BLC = _MapperBlock(c.mapper_heads, c.mapper_mlp_ratio, self.dtype, name=f"layer_{i}")(
                x_BLC
            )
        return x_BLC[:, c.prefix :]


class _MapperBlock(nn.Module):
    """Pre-norm transformer block: self-attention, then MLP."""

    heads: int
    mlp_ratio: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLC: jax.Array) -> jax.Array:
        width = x_BLC.shape[-1]
        split = (*x_BLC.shape[:2], self.heads, width // self.heads)
        y_BLC = self._norm("attention_norm", x_BLC)
        query = self._dense("query", width, use_bias=False)(y_BLC).reshape(split)
        both = self._dense("key_value", 2 * width, use_bias=False)(y_BLC)
        key, value = (part.reshape(split) for part in jnp.split(both, 2, axis=-1))
        scores_BHLL = jnp.einsum("blhd,bmhd->bhlm", query, key, preferred_element_type=jnp.float32)
        weights_BHLL = nn.softmax(scores_BHLL * split[-1] ** -0.5).astype(self.dtype)
        mixed_BLC = jnp.einsum("bhlm,bmhd->blhd", weights_BHLL, value).reshape(x_BLC.shape)
        x_BLC += self._dense("attention_out", width)(mixed_BLC)
        hidden = nn.relu(
            self._dense("mlp_up", self.mlp_ratio * width)(self._norm("mlp_norm", x_BLC))
        )
        return x_BLC + self._dense("mlp_down", width)(hidden)

    def _dense(self, name: str, width: int, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(width, use_bias=use_bias, dtype=self.dtype, name=name)

    def _norm(self, name: str, x_BLC: jax.Array) -> jax.Array:
        norm = nn.LayerNorm(_EPSILON, dtype=jnp.float32, name=name)
        return norm(x_BLC).astype(self.dtype)
