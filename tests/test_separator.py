"""The signal path: masks are reconciled, channels share them, nothing is lost or invented."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax import separator
from opensep_jax.separator import build_separator
from opensep_jax.signal.stft import stft
from tests.signal_path import separate

NET = build_separator(
    size="debug", dtype="float32", remat=False, n_fft_samples=128, hop_samples=64,
    sample_rate_hz=16000,
)  # fmt: skip
SAMPLES, PROMPTS, TOKENS, WIDTH = 3001, 3, 5, 16


@functools.cache
def _params() -> dict:
    rng = np.random.default_rng(0)
    shapes = separator.abstract_params(NET, WIDTH)
    return jax.tree.map(lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), shapes)


def _texts(batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    text = 3 * rng.standard_normal((batch, PROMPTS, TOKENS, WIDTH)).astype(np.float32)
    return text, np.ones((batch, PROMPTS, TOKENS), bool)


def _waves(batch: int = 2, channels: int = 2) -> np.ndarray:
    rng = np.random.default_rng(2)
    return (0.1 * rng.standard_normal((batch, channels, SAMPLES))).astype(np.float32)


def _stems(wave_BCT, real_BP=None, rule="limit") -> np.ndarray:
    real_BP = np.ones((len(wave_BCT), PROMPTS), bool) if real_BP is None else real_BP
    return np.asarray(separate(NET, _params(), wave_BCT, *_texts(), real_BP, rule=rule))


# Mask rules


def test_limited_masks_never_exceed_the_mixture_and_small_sums_stay():
    rng = np.random.default_rng(0)
    mask = rng.uniform(0, 1, (2, 4, 20, 30)).astype(np.float32)
    mask[0, :, :10] *= 0.2  # sums below one
    limited = np.asarray(separator.limit_masks(mask))
    total, before = limited.sum(1), mask.sum(1)
    assert total.max() <= 1 + 1e-6 and limited.min() >= 0
    below = np.broadcast_to((before <= 1)[:, None], mask.shape)
    assert 0.1 < below.mean() < 0.5
    np.testing.assert_array_equal(limited[below], mask[below])
    np.testing.assert_allclose(total[before > 1], 1, rtol=1e-6)
    ratio = limited / mask  # all masks of a place shrink alike
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-5)


def test_normalised_masks_share_everything():
    mask = np.random.default_rng(0).uniform(0.01, 1, (2, 4, 20, 30)).astype(np.float32)
    shared = np.asarray(separator.normalise_masks(mask))
    np.testing.assert_allclose(shared.sum(1), 1, rtol=1e-6)
    nothing = separator.normalise_masks(np.zeros((1, 2, 3, 4), np.float32))
    assert not np.asarray(nothing).any()


@pytest.mark.parametrize("rule", ["limit", "normalise", "none"])
def test_prompts_that_pad_take_nothing_from_the_others(rule):
    mask = np.random.default_rng(0).uniform(0, 1, (1, 4, 20, 30)).astype(np.float32)
    padded = np.asarray(separator.reconcile(mask, np.array([[True, False, True, False]]), rule))
    alone = np.asarray(separator.reconcile(mask[:, ::2], np.ones((1, 2), bool), rule))
    np.testing.assert_array_equal(padded[:, ::2], alone)
    assert not padded[:, 1::2].any()


# Stems


@pytest.mark.parametrize("rule", ["limit", "normalise", "none"])
def test_stems_of_padded_prompts_are_zero(rule):
    real_BP = np.array([[True, True, False], [True, False, False]])
    stems_BPCT = _stems(_waves(), real_BP, rule)
    assert stems_BPCT.shape == (2, PROMPTS, 2, SAMPLES) and stems_BPCT.dtype == np.float32
    assert not stems_BPCT[~real_BP].any()
    assert (np.abs(stems_BPCT[real_BP]).max(-1) > 1e-3).all()


def test_stems_are_what_their_masks_leave_of_the_mixture():
    """Masks that look at nothing but their own place: the stems sum to the sum of the masks."""
    wave_BCT = _waves()
    spectrum_BCFN, energy_BFN = separator.analyse(NET, wave_BCT)
    np.testing.assert_allclose(spectrum_BCFN, stft(wave_BCT, NET.stft), atol=1e-5)
    np.testing.assert_allclose(energy_BFN, np.sum(np.abs(spectrum_BCFN) ** 2, 1), rtol=1e-5)
    weight = np.random.default_rng(0).uniform(size=(2, PROMPTS, NET.stft.bins, 1))
    mask_BPFN = np.broadcast_to(
        weight / weight.sum(1, keepdims=True), (2, PROMPTS, *energy_BFN.shape[1:])
    ).astype(np.float32)
    stems_BPCT = np.asarray(separator.synthesise(NET, spectrum_BCFN, mask_BPFN, SAMPLES))
    np.testing.assert_allclose(stems_BPCT.sum(1), wave_BCT, atol=1e-6)
    half = separator.synthesise(NET, spectrum_BCFN, 0.5 * np.ones_like(mask_BPFN), SAMPLES)
    np.testing.assert_allclose(half[:, 1], 0.5 * wave_BCT, atol=1e-6)


def test_products_of_magnitudes_by_hand():
    mask_BPFN = np.array([[[[0.5, 1.0]], [[0.5, 0.0]]]], np.float32)
    products = separator.magnitude_products(mask_BPFN, np.array([[[4.0, 9.0]]], np.float32))
    np.testing.assert_allclose(products, [[[1 + 9, 1], [1, 1]]])


def test_stems_and_residual_under_a_limit_never_exceed_the_mixtures_energy():
    wave_BCT = _waves()
    stems_BPCT = _stems(wave_BCT)
    residual_BCT = wave_BCT - stems_BPCT.sum(1)
    for part in (*stems_BPCT.swapaxes(0, 1), residual_BCT):
        assert (np.sum(part**2, -1) <= 1.001 * np.sum(wave_BCT**2, -1)).all()
    full = _stems(wave_BCT, rule="normalise").sum(1)
    np.testing.assert_allclose(full, wave_BCT, atol=1e-6)


def test_channels_share_the_mask():
    """Channels that are one signal at several levels have stems at those levels."""
    wave_BCT = _waves()
    wave_BCT[:, 1] = -0.25 * wave_BCT[:, 0]
    stems_BPCT = _stems(wave_BCT)
    np.testing.assert_allclose(stems_BPCT[:, :, 1], -0.25 * stems_BPCT[:, :, 0], atol=1e-6)


def test_gain_of_the_mixture_is_gain_of_the_stems():
    wave_BCT = _waves()
    np.testing.assert_allclose(_stems(8 * wave_BCT), 8 * _stems(wave_BCT), atol=2e-4)


def test_silence_gives_finite_zeros():
    assert not _stems(np.zeros_like(_waves())).any()
    wave_BCT = _waves()
    wave_BCT[0] = 0
    wave_BCT[1, :, 500:] = 0
    stems_BPCT = _stems(wave_BCT)
    assert np.isfinite(stems_BPCT).all() and not stems_BPCT[0].any()
    assert not stems_BPCT[1, ..., 500 + 2 * 128 :].any()


def test_very_short_signals():
    for samples in (1, 63, 64, 65):
        shapes = jax.eval_shape(
            functools.partial(separate, NET), _params(),
            jnp.zeros((1, 1, samples)), *_texts(1), np.ones((1, PROMPTS), bool),
        )  # fmt: skip
        assert shapes.shape == (1, PROMPTS, 1, samples)


def test_unknown_sizes_are_named():
    with pytest.raises(ValueError, match="model.size='huge' is not known; known are debug, tiny,"):
        build_separator(
            size="huge", dtype="float32", remat=False, n_fft_samples=128, hop_samples=64,
            sample_rate_hz=16000,
        )  # fmt: skip
    with pytest.raises(ValueError, match="model.dtype='float99' is not known"):
        build_separator(
            size="debug", dtype="float99", remat=False, n_fft_samples=128, hop_samples=64,
            sample_rate_hz=16000,
        )  # fmt: skip


def test_abstract_parameters_are_those_of_init():
    inputs = jnp.zeros((1, 65, 4)), jnp.zeros((1, 1, 1, WIDTH)), jnp.ones((1, 1, 1), bool)
    shapes = jax.eval_shape(NET.model.init, jax.random.key(0), *inputs)["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), separator.abstract_params(NET, WIDTH)
    )


def test_the_predecessors_network_hears_loudness():
    """It sees log1p of the magnitude, where ours divide by the mixture's mean."""
    net = build_separator(
        size="paper_debug", dtype="float32", remat=False, n_fft_samples=128, hop_samples=64,
        sample_rate_hz=16000,
    )  # fmt: skip
    power_BFN = jnp.float32([[[0.0, 4.0, 1e4]]])
    np.testing.assert_allclose(net.level(power_BFN), np.log1p([[[0, 2, 100]]]), rtol=1e-6)
    np.testing.assert_allclose(NET.level(4 * power_BFN), NET.level(power_BFN), rtol=1e-5)
