"""The signal path from waveforms to stems at once, to compare the doors with."""

import functools

import jax

from opensep_jax.separator import SeparatorNet, analyse, predict_masks, reconcile, synthesise


@functools.partial(jax.jit, static_argnames=("net", "rule"))
def separate(
    net: SeparatorNet,
    params: dict,
    wave_BCT: jax.Array,
    text_BPLC: jax.Array,
    text_mask_BPL: jax.Array,
    real_BP: jax.Array,
    rule: str = "limit",
) -> jax.Array:
    """Stems [B, P, C, T]; the channels of a mixture share one mask."""
    spectrum_BCFN, energy_BFN = analyse(net, wave_BCT)
    power_BFN = energy_BFN / wave_BCT.shape[1]
    drawn_BPFN = predict_masks(net, params, power_BFN, text_BPLC, text_mask_BPL)
    mask_BPFN = reconcile(drawn_BPFN, real_BP, rule)
    return synthesise(net, spectrum_BCFN, mask_BPFN, wave_BCT.shape[-1])
