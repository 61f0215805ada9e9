"""BSS-eval version 3: SDR, SIR and SAR that forgive a filter of 512 taps, and SDR, ISR of images.

An estimate e of source j is split by two least-squares projections: onto source j delayed by 0 to
511 samples, P_j e, and onto all the sources so delayed, P e. Then P_j e - s_j is the spatial (or
filtering) distortion, P e - P_j e interference, e - P e artifacts. The energies of the parts give

                    sources                       images
    SDR   |P_j e|^2 / |e - P_j e|^2        |s_j|^2 / |e - s_j|^2
    ISR                                    |s_j|^2 / |P_j e - s_j|^2
    SIR   |P_j e|^2 / |P e - P_j e|^2      the same
    SAR   |P e|^2 / |e - P e|^2            the same

So the SDR of sources ignores gain and filtering, that of images is the plain SNR (over all
channels), and figures of one kind must not be compared with the other.

Conventions: those of `opensep_jax.signal.metrics` (limits of +-LIMIT_DB, NaN for a silent reference
and for samples that are not finite), and no mean is taken out. Beside a silent reference the others
are scored as if it were not there. A silent estimate has -LIMIT_DB in all but the SDR and ISR of
images, which are 0 dB.

Correlations, projections and energies are float64, whatever the setting of `jax_enable_x64`: the
systems of equations of real sounds have condition numbers to 1e10. Where a reference has bands that
are empty to the limits of float64, an estimate's sound there is noise of rounding to SIR and SAR,
as it is in mir_eval. TPUs have no float64 Fourier transform, so there the CPU of the host computes;
under a caller's own jit this works on CPU and GPU only.

Source: Vincent, Gribonval, Fevotte, "Performance measurement in blind audio source separation",
IEEE TASLP 14(4), 2006; images: Vincent et al., "First stereo audio source separation evaluation
campaign", ICA 2007. Equal to mir_eval 0.8.2 (tests).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.signal.levinson import solve_block_toeplitz
from opensep_jax.signal.metrics import ratio_db

TAPS = 512
_BLOCK = 8 * TAPS  # samples of a transform
_HOP = _BLOCK - (TAPS - 1)  # of these, the ones that no filter of a block wraps around into
_CHUNK = 8  # systems at a time, at most: more would leave a CPU's cache, fewer a GPU idle


class SourceScores(NamedTuple):
    """Measures in dB of BSS-eval sources, float32, all of one shape."""

    sdr: jax.Array
    sir: jax.Array
    sar: jax.Array


class ImageScores(NamedTuple):
    """Measures in dB of BSS-eval images, float32, all of one shape."""

    sdr: jax.Array
    isr: jax.Array
    sir: jax.Array
    sar: jax.Array


def bss_eval_sources(
    estimates_ST: jax.Array, references_ST: jax.Array, *, pairs: bool = False
) -> SourceScores:
    """Scores mono estimates, forgiving a filter of 512 taps.

    Args:
        estimates_ST: separated waveforms, float [..., S, T], any scale.
        references_ST: all the sources of the mixture, float [..., S, T], any scale.
        pairs: score every estimate against every reference; the number of estimates E is then
            free. `mir_eval`'s permutation is `best_permutation` of the SIR of pairs, and a mixture
            scored as one more estimate gives the improvements over it.

    Returns:
        float32 [..., S] (estimate s against reference s), or [..., E, S] of pairs.

    Raises:
        ValueError: if the shapes do not fit.

    Source: module docstring; `mir_eval.separation.bss_eval_sources`.
    """
    with jax.enable_x64(True):
        energies = _checked_energies(
            jnp.expand_dims(estimates_ST, -2),
            jnp.expand_dims(references_ST, -2),
            pairs,
            images=False,
        )
        return SourceScores(
            sdr=_score(energies, "own", "distortion"),
            sir=_score(energies, "own", "interference"),
            sar=_score(energies, "joint", "artifacts"),
        )


def bss_eval_images(
    estimates_SCT: jax.Array, references_SCT: jax.Array, *, pairs: bool = False
) -> ImageScores:
    """Scores estimates of one or more channels; gain and filtering count as distortion in the SDR.

    Args:
        estimates_SCT: separated waveforms, float [..., S, C, T] with C audio channels, on the
            references' scale.
        references_SCT: all the sources of the mixture, float [..., S, C, T].
        pairs: as for `bss_eval_sources`.

    Returns:
        float32 [..., S] (estimate s against reference s), or [..., E, S] of pairs.

    Raises:
        ValueError: if the shapes do not fit.

    Source: module docstring; `mir_eval.separation.bss_eval_images`.
    """
    with jax.enable_x64(True):
        energies = _checked_energies(estimates_SCT, references_SCT, pairs, images=True)
        return ImageScores(
            sdr=_score(energies, "true", "error"),
            isr=_score(energies, "true", "spatial"),
            sir=_score(energies, "own", "interference"),
            sar=_score(energies, "joint", "artifacts"),
        )


def _score(energies: dict[str, jax.Array], signal: str, noise: str) -> jax.Array:
    """A ratio of energies in dB, float32, NaN where none is defined."""
    score_db = ratio_db(energies[signal], energies[noise]).astype(jnp.float32)
    return jnp.where(energies["defined"], score_db, jnp.nan)


def _checked_energies(
    estimates_SCT: jax.Array, references_SCT: jax.Array, pairs: bool, images: bool
) -> dict[str, jax.Array]:
    """`_energies` of arrays [..., E, C, T] and [..., S, C, T] that fit, where float64 exists."""
    estimated, true = np.shape(estimates_SCT), np.shape(references_SCT)
    same = [shape[:-3] + shape[-2:] if pairs else shape for shape in (estimated, true)]
    if min(len(estimated), len(true)) < 3 or same[0] != same[1] or 0 in estimated + true:
        raise ValueError(
            f"estimates and references must have {'like' if pairs else 'equal'} shapes "
            f"[..., sources, channels, samples] and no empty axis, got {estimated} and {true}"
        )
    device = jax.local_devices(backend="cpu")[0] if jax.default_backend() == "tpu" else None
    estimates, references = jax.device_put((estimates_SCT, references_SCT), device)
    return _energies(estimates, references, pairs=pairs, images=images)


@functools.partial(jax.jit, static_argnames=("pairs", "images"))
def _energies(
    estimates_ECT: jax.Array, references_SCT: jax.Array, pairs: bool, images: bool
) -> dict[str, jax.Array]:
    """The terms of the ratios, float64 and bool [..., E, S] of pairs or [..., S]."""
    lead = estimates_ECT.shape[:-3]
    items = [
        x.reshape(-1, *x.shape[-3:]).astype(jnp.float64) for x in (estimates_ECT, references_SCT)
    ]
    count = len(items[0])
    chunk = max(size for size in range(1, _CHUNK + 1) if count % size == 0)
    # Signals one mixture at a time, which stay in a CPU's cache; small systems many at a time.
    own, joint = jax.lax.map(lambda item: _systems(*item, pairs=pairs), items)
    own = jax.lax.map(lambda x: jax.vmap(solve_block_toeplitz)(*x), own, batch_size=chunk)
    joint = jax.lax.map(lambda x: solve_block_toeplitz(*x), joint, batch_size=chunk)
    terms = functools.partial(_mixture_energies, pairs=pairs, images=images)
    energies = jax.lax.map(lambda item: terms(*item), (*items, own, joint))
    return {name: x.reshape(*lead, *x.shape[1:]) for name, x in energies.items()}


def _systems(
    estimates_ECT: jax.Array, references_SCT: jax.Array, *, pairs: bool
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """What `solve_block_toeplitz` needs: for each source on its own, and for all of them."""
    sources, channels, _ = references_SCT.shape
    rows = sources * channels
    unit_SCNB = _blocks(_unit_energy(references_SCT))
    past_SCNF = jnp.fft.rfft(unit_SCNB)
    system = _correlations(unit_SCNB, past_SCNF).transpose(2, 3, 0, 1, 4)
    right = _correlations(_blocks(estimates_ECT), past_SCNF)
    source = np.arange(sources)
    own_right = right[_scored(estimates_ECT, references_SCT, pairs), :, source[:, None]]
    own = system[source, :, source], own_right.reshape(sources, -1, channels, TAPS)
    return own, (system.reshape(rows, rows, TAPS), right.reshape(-1, rows, TAPS))


def _mixture_energies(
    estimates_ECT: jax.Array,
    references_SCT: jax.Array,
    own: jax.Array,
    joint: jax.Array,
    *,
    pairs: bool,
    images: bool,
) -> dict[str, jax.Array]:
    """The terms for one mixture, from the filters of both projections."""
    past_SCNF = jnp.fft.rfft(_blocks(_unit_energy(references_SCT)))
    estimate_ECNH = _blocks(estimates_ECT)[..., TAPS - 1 :]
    scored = _scored(estimates_ECT, references_SCT, pairs)
    every_RNF = past_SCNF.reshape(-1, *past_SCNF.shape[2:])
    joint_ECNH = _filtered(joint, every_RNF).reshape(estimate_ECNH.shape)
    own_SKCNH = jax.vmap(_filtered)(own, past_SCNF)
    own_SKCNH = own_SKCNH.reshape(*scored.shape, *estimate_ECNH.shape[1:])
    estimate_SKCNH, joint_SKCNH = estimate_ECNH[scored], joint_ECNH[scored]

    sounding_S = jnp.any(references_SCT != 0, axis=(-2, -1))
    finite_E = jnp.all(jnp.isfinite(estimates_ECT), axis=(-2, -1))
    finite_E = finite_E & jnp.all(jnp.isfinite(references_SCT))
    terms = {
        "defined": finite_E[scored] & sounding_S[:, None],
        "own": _energy(own_SKCNH),
        "joint": _energy(joint_ECNH)[scored],
        "distortion": _energy(estimate_SKCNH - own_SKCNH),
        "interference": _energy(joint_SKCNH - own_SKCNH),
        "artifacts": _energy(estimate_ECNH - joint_ECNH)[scored],
    }
    if images:
        true_S1CNH = _blocks(references_SCT)[:, None, ..., TAPS - 1 :]
        terms |= {
            "true": jnp.broadcast_to(_energy(true_S1CNH), scored.shape),
            "error": _energy(estimate_SKCNH - true_S1CNH),
            "spatial": _energy(own_SKCNH - true_S1CNH),
        }
    return {name: x.T if pairs else x[:, 0] for name, x in terms.items()}


def _scored(estimates_ECT: jax.Array, references_SCT: jax.Array, pairs: bool) -> np.ndarray:
    """For each source, the estimates that are scored against it: [S, K]."""
    sources = len(references_SCT)
    if pairs:
        return np.tile(np.arange(len(estimates_ECT)), (sources, 1))
    return np.arange(sources)[:, None]


def _blocks(wave_T: jax.Array) -> jax.Array:
    """Cuts [..., T] into [..., N, _BLOCK]: TAPS - 1 samples of the past, then _HOP new ones.

    So each block can be filtered, or correlated with its past, by a transform of its own.
    """
    lead = [(0, 0)] * (wave_T.ndim - 1)
    count = -(-(wave_T.shape[-1] + TAPS - 1) // _HOP)  # a filtered signal is longer
    padded_T = jnp.pad(wave_T, [*lead, (0, count * _HOP - wave_T.shape[-1])])
    new_NH = padded_T.reshape(*wave_T.shape[:-1], count, _HOP)
    past_N = jnp.pad(new_NH[..., :-1, 1 - TAPS :], [*lead, (1, 0), (0, 0)])
    return jnp.concatenate([past_N, new_NH], axis=-1)


def _correlations(late_ECNB: jax.Array, past_SCNF: jax.Array) -> jax.Array:
    """Sums over t of late(t) past(t - l) for l below TAPS, [E, C, S, C, TAPS]."""
    late_ECNF = jnp.fft.rfft(late_ECNB.at[..., : TAPS - 1].set(0.0))
    products = jnp.sum(late_ECNF[:, :, None, None] * jnp.conj(past_SCNF)[None, None], axis=-2)
    return jnp.fft.irfft(products, _BLOCK)[..., :TAPS]


def _filtered(filters_MRL: jax.Array, past_RNF: jax.Array) -> jax.Array:
    """M sums of R filtered signals, given by the spectra of their blocks: [M, N, _HOP]."""
    filters_MRF = jnp.fft.rfft(filters_MRL, _BLOCK)
    spectra_MNF = sum(filters_MRF[:, r, None] * past_RNF[None, r] for r in range(len(past_RNF)))
    return jnp.fft.irfft(spectra_MNF, _BLOCK)[..., TAPS - 1 :]


def _energy(wave_CNH: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(wave_CNH), axis=(-3, -2, -1))


def _unit_energy(wave_T: jax.Array) -> jax.Array:
    energy = jnp.sum(jnp.square(wave_T), axis=-1, keepdims=True)
    return wave_T / jnp.sqrt(jnp.where(energy > 0, energy, 1.0))
