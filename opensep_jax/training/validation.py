"""Separation scores on fixed mixtures, used by validation inside a run and by `evaluate`."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.data.lists import ListedMixture, pad_texts, render, text_ids
from opensep_jax.data.records import PreparedDataset
from opensep_jax.separator import (
    MASK_RULES,
    SeparatorNet,
    analyse,
    predict_masks,
    reconcile,
    synthesise,
)
from opensep_jax.sharding import replicated
from opensep_jax.signal.metrics import si_sdr_improvement, snr_improvement
from opensep_jax.signal.stems import reorder
from opensep_jax.training.blind import blind_masks, outputs_of_sources, reorder_masks

RULES = ("none", *MASK_RULES)


def separate_mixtures(
    params: dict,
    batch: dict[str, jax.Array],
    *,
    net: SeparatorNet,
    rules: Sequence[str] = RULES,
    blind: bool = False,
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Stems of the sources of a batch of mixtures, in their order, under mask rules.

    Args:
        params: of the network; of a blind one those of `blind.blind_masks`.
        batch: `sources` [B, S, T], and unless blind `text` [B, S, L, C], `text_mask` [B, S, L].
        net: static.
        rules: static, of `RULES`.
        blind: static; the network has outputs in no order instead of prompts: each source gets
            the output that the best permutation gives it.

    Returns:
        `stems` [B, S, T] and `masks` [B, S, F, N] by rule.
    """
    sources_BST = batch["sources"]
    spectrum_B1FN, power_BFN = analyse(net, sources_BST.sum(1, keepdims=True))
    if blind:
        raw_BPFN = blind_masks(net, params, power_BFN)
    else:
        raw_BPFN = predict_masks(net, params, power_BFN, batch["text"], batch["text_mask"])
    real_BP = jnp.ones(raw_BPFN.shape[:2], bool)
    found = {}
    for rule in rules:
        mask_BPFN = reconcile(raw_BPFN, real_BP, rule)
        stems_BPT = synthesise(net, spectrum_B1FN, mask_BPFN, sources_BST.shape[-1])[:, :, 0]
        if blind:
            order_BS = outputs_of_sources(stems_BPT, sources_BST)
            stems_BPT, mask_BPFN = reorder(stems_BPT, order_BS), reorder_masks(mask_BPFN, order_BS)
        found[rule] = stems_BPT, mask_BPFN
    return found


def score_mixtures(
    params: dict, batch: dict[str, jax.Array], *, net: SeparatorNet, blind: bool = False
) -> dict[str, jax.Array]:
    """Scores each source of a batch of mixtures under every mask rule.

    Args: those of `separate_mixtures`.

    Returns:
        `si_sdri_<rule>` and `snri_<rule>` in dB, float32 [B, S]; `stems` [B, S, T] and `masks`
        [B, S, F, N] of the rule `limit`. What is not used costs nothing under jit.
    """
    sources_BST, result = batch["sources"], {}
    mix_B1T = sources_BST.sum(1, keepdims=True)
    for rule, (stems_BST, mask_BSFN) in separate_mixtures(
        params, batch, net=net, blind=blind
    ).items():
        result[f"si_sdri_{rule}"] = si_sdr_improvement(stems_BST, sources_BST, mix_B1T)
        result[f"snri_{rule}"] = snr_improvement(stems_BST, sources_BST, mix_B1T)
        if rule == "limit":
            result |= {"stems": stems_BST, "masks": mask_BSFN}
    return result


@functools.cache
def jitted_scores(
    net: SeparatorNet,
    mesh: jax.sharding.Mesh | None = None,
    shown: int = 0,
    *,
    blind: bool = False,
) -> jax.stages.Wrapped:
    """`score_mixtures`, jitted once for each of these arguments.

    Args:
        net: network and spectrogram.
        mesh: with it the results are whole on every device, so that each process can read them.
        shown: mixtures of which the results include `stems` and `masks`.
        blind: see `separate_mixtures`.
    """

    def scores(params: dict, batch: dict) -> dict:
        result = score_mixtures(params, batch, net=net, blind=blind)
        pictured = {k: result.pop(k)[:shown] for k in ("stems", "masks")}
        return result | pictured if shown else result

    return jax.jit(scores, out_shardings=replicated(mesh) if mesh else None)


def mixture_batches(
    dataset: PreparedDataset,
    mixtures: Sequence[ListedMixture],
    *,
    seconds: float,
    level_db: float,
    wording: str,
    batch: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `batch` mixtures (the last one is filled up with its first item again).

    Yields:
        Dicts for `score_mixtures`, texts padded to the longest of the list.
    """
    samples = round(seconds * dataset.sample_rate_hz)
    ids = [text_ids(dataset, mixture, wording) for mixture in mixtures]
    longest = max(len(dataset.text.states(i)) for row in ids for i in row)
    length = 16 * -(-longest // 16)
    for first in range(0, len(mixtures), batch):
        rows = list(range(first, min(first + batch, len(mixtures))))
        rows += [first] * (batch - len(rows))
        texts = [pad_texts([dataset.text.states(i) for i in ids[row]], length) for row in rows]
        yield {
            "sources": np.stack(
                [render(dataset, mixtures[row], samples, level_db) for row in rows]
            ),
            "text": np.stack([states for states, _ in texts]),
            "text_mask": np.stack([mask for _, mask in texts]),
        }


def mean_score(values: np.ndarray) -> float:
    """Mean over mixtures of the mean over the sources of each, of [M, S] values.

    NaN, the score of a source without sound, counts nowhere.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values).all(-1)]
    return float(np.nanmean(values, -1).mean()) if len(values) else np.nan
