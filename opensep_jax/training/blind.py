"""Separation without text: outputs in no order, and which of them a target belongs to."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.separator import SeparatorNet, init_params, predict_masks
from opensep_jax.signal.metrics import si_sdr
from opensep_jax.signal.stems import best_permutation

# Losses [B, P] of masks for targets, both [B, P, F, N], or one mask for all targets.
Cost = Callable[[jax.Array, jax.Array], jax.Array]


def init_blind(net: SeparatorNet, key: jax.Array, *, outputs: int, width: int) -> dict:
    """Random parameters: `net`, and `prompts` [P, C], a token of `width` channels per output."""
    token_key = jax.random.fold_in(key, outputs)
    prompts_PC = jax.random.normal(token_key, (outputs, width))
    return {"net": init_params(net, key, width), "prompts": prompts_PC}


def blind_masks(net: SeparatorNet, params: dict, power_BFN: jax.Array) -> jax.Array:
    """Masks in [0, 1] of every output, float32 [B, P, F, N].

    Args:
        net: the network that is conditioned on text elsewhere.
        params: as of `init_blind`.
        power_BFN: squared magnitude of the mixtures.
    """
    prompts_PC = params["prompts"]
    shape = (len(power_BFN), len(prompts_PC), 1, prompts_PC.shape[-1])
    text_BPLC = jnp.broadcast_to(prompts_PC[None, :, None], shape)
    return predict_masks(net, params["net"], power_BFN, text_BPLC, jnp.ones(shape[:3], bool))


def reorder_masks(mask_BPFN: jax.Array, order_BS: jax.Array) -> jax.Array:
    """Takes the output of each source: [B, P, F, N] to [B, S, F, N]."""
    return jnp.take_along_axis(mask_BPFN, order_BS[..., None, None], axis=1)


def outputs_of_sources(stems_BPT: jax.Array, sources_BST: jax.Array) -> jax.Array:
    """Finds the output of each source for the highest sum of SI-SDR, each used once.

    Args:
        stems_BPT: outputs, at least as many as sources.
        sources_BST: true sources.

    Returns:
        int32 [B, S].
    """
    scores_BPS = si_sdr(stems_BPT[:, :, None], sources_BST[:, None])
    spare = stems_BPT.shape[1] - sources_BST.shape[1]  # outputs that are left over cost nothing
    padded = jnp.pad(jnp.nan_to_num(scores_BPS), ((0, 0), (0, 0), (0, spare)))
    return best_permutation(padded)[:, : sources_BST.shape[1]]


def permuted(cost: Cost, target_BPFN: jax.Array, mask_BPFN: jax.Array) -> jax.Array:
    """Puts masks into the order of the targets that costs least, one mask for each.

    Source: Yu et al., "Permutation invariant training of deep models for speaker-independent
    multi-talker speech separation", ICASSP 2017 (arXiv 1607.00325).
    """
    drawn_BPFN = jax.lax.stop_gradient(mask_BPFN)
    rows = [cost(target_BPFN, drawn_BPFN[:, p : p + 1]) for p in range(mask_BPFN.shape[1])]
    return reorder_masks(mask_BPFN, best_permutation(-jnp.stack(rows, axis=1)))


def remixed(cost: Cost, target_B2FN: jax.Array, mask_BPFN: jax.Array) -> jax.Array:
    """Adds masks up to those of two mixtures, each mask given to the one where it costs less.

    Source: Wisdom et al., "Unsupervised sound separation using mixture invariant training",
    NeurIPS 2020 (arXiv 2006.12701); all assignments are tried.
    """
    outputs = mask_BPFN.shape[1]
    first_AP = np.array(list(itertools.product((0, 1), repeat=outputs)), np.float32)
    members_A2P = jnp.stack([first_AP, 1 - first_AP], axis=1)
    drawn_BPFN = jax.lax.stop_gradient(mask_BPFN)

    def total(members_2P: jax.Array) -> jax.Array:
        return cost(target_B2FN, jnp.einsum("gp,bpfn->bgfn", members_2P, drawn_BPFN)).sum(-1)

    best_B = jnp.argmin(jax.lax.map(total, members_A2P), axis=0)
    return jnp.einsum("bgp,bpfn->bgfn", members_A2P[best_B], mask_BPFN)
