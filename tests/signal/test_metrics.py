"""Tests of the separation measures against hand-solved cases and float64 arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.signal import metrics

T = 80_000  # 5 s at 16 kHz
TIME = np.arange(T) / T
SINE = np.sin(2 * np.pi * 100 * TIME)
COSINE = np.cos(2 * np.pi * 100 * TIME)  # orthogonal to SINE, same energy, both zero-mean


def si_sdr_float64(estimate, reference):
    """Computes the definition on the very float32 values, in float64."""
    estimate, reference = (np.asarray(np.float32(x), np.float64) for x in (estimate, reference))
    estimate = estimate - estimate.mean(-1, keepdims=True)
    reference = reference - reference.mean(-1, keepdims=True)
    gain = np.sum(estimate * reference, -1, keepdims=True) / np.sum(reference**2, -1, keepdims=True)
    noise = estimate - gain * reference
    return 10 * np.log10(np.sum((gain * reference) ** 2, -1) / np.sum(noise**2, -1))


def snr_float64(estimate, reference):
    """Computes the definition on the very float32 values, in float64."""
    estimate, reference = (np.asarray(np.float32(x), np.float64) for x in (estimate, reference))
    return 10 * np.log10(np.sum(reference**2, -1) / np.sum((reference - estimate) ** 2, -1))


@pytest.mark.parametrize("degrees", [5, 30, 45, 60, 85, 120])
def test_si_sdr_of_a_known_angle(degrees):
    angle = np.deg2rad(degrees)
    estimate = np.cos(angle) * SINE + np.sin(angle) * COSINE
    expected_db = 20 * np.log10(abs(np.cos(angle)) / np.sin(angle))
    np.testing.assert_allclose(metrics.si_sdr(estimate, SINE), expected_db, atol=1e-3)


@pytest.mark.parametrize(
    "gain, expected_db", [(0.5, 6.0206), (0.9, 20.0), (2.0, 0.0), (-1, -6.0206)]
)
def test_snr_of_a_known_gain(gain, expected_db):
    np.testing.assert_allclose(metrics.snr(gain * SINE, SINE), expected_db, atol=1e-3)


def test_snr_counts_an_offset_and_si_sdr_does_not():
    np.testing.assert_allclose(metrics.snr(SINE + 0.1, SINE), 10 * np.log10(50), atol=1e-3)
    assert metrics.si_sdr(SINE + 0.1, SINE) > 90


@pytest.mark.parametrize("level_db", [-40, -10, 0, 10, 40, 70])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_agrees_with_float64(level_db, offset):
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((3, T)) * 0.1 + offset
    noise = rng.standard_normal((3, T)) * 0.1 * 10 ** (-level_db / 20)
    estimate = reference + noise
    for measure, exact in ((metrics.si_sdr, si_sdr_float64), (metrics.snr, snr_float64)):
        result = measure(estimate, reference)
        assert result.dtype == jnp.float32 and result.shape == (3,)
        np.testing.assert_allclose(result, exact(estimate, reference), atol=1e-3)


@pytest.mark.parametrize("scale", [-3.0, 1e-3, 1e-25, 1e25])
def test_si_sdr_ignores_the_scale_of_either_signal(scale):
    estimate = SINE + 0.1 * COSINE
    np.testing.assert_allclose(metrics.si_sdr(scale * estimate, SINE), 20.0, atol=1e-3)
    np.testing.assert_allclose(metrics.si_sdr(estimate, scale * SINE), 20.0, atol=1e-3)


def test_snr_of_very_quiet_signals():
    estimate = 1e-25 * (SINE + 0.1 * COSINE)
    np.testing.assert_allclose(metrics.snr(estimate, 1e-25 * SINE), 20.0, atol=1e-3)


def test_a_small_signal_on_a_large_offset():
    reference = 1.0 + 1e-3 * SINE
    estimate = 1.0 + 1e-3 * (SINE + 0.1 * COSINE)
    exact = si_sdr_float64(estimate, reference)
    np.testing.assert_allclose(metrics.si_sdr(estimate, reference), exact, atol=1e-3)


def test_improvement_over_the_mixture():
    mixture = SINE + COSINE  # 0 dB for both sources
    estimates = np.stack([SINE + 0.1 * COSINE, COSINE + 0.01 * SINE])
    references = np.stack([SINE, COSINE])
    for measure in (metrics.si_sdr_improvement, metrics.snr_improvement):
        np.testing.assert_allclose(measure(estimates, references, mixture), [20, 40], atol=1e-3)
        np.testing.assert_allclose(measure(mixture, references, mixture), [0, 0], atol=1e-3)


def test_identical_signals_reach_the_limit():
    assert metrics.si_sdr(SINE, SINE) > 60
    assert metrics.snr(SINE, SINE) == metrics.LIMIT_DB


@pytest.mark.parametrize("measure", [metrics.si_sdr, metrics.snr])
def test_silence(measure):
    silence = np.zeros(T)
    assert np.isnan(measure(SINE, silence))
    assert np.isnan(measure(silence, silence))
    expected_db = -metrics.LIMIT_DB if measure is metrics.si_sdr else 0.0
    assert measure(silence, SINE) == expected_db
    batch = measure(np.stack([SINE, SINE]), np.stack([silence, SINE]))
    assert np.isnan(batch[0]) and batch[1] > 60  # one silent row does not spoil the others


def test_a_constant_reference_is_silent_and_an_orthogonal_estimate_is_at_the_bottom():
    assert np.isnan(metrics.si_sdr(SINE, np.full(T, 0.1)))
    assert metrics.si_sdr(np.full(T, 0.1), SINE) == -metrics.LIMIT_DB
    assert metrics.si_sdr(COSINE, SINE) < -80


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_give_nan(value):
    broken = SINE.copy()
    broken[7] = value
    for measure in (metrics.si_sdr, metrics.snr):
        assert np.isnan(measure(broken, SINE)) and np.isnan(measure(SINE, broken))
        assert np.isnan(jax.jit(measure)(broken, SINE))


def test_batches_equal_single_items_under_jit():
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((2, 3, 4000))
    estimate = reference + rng.standard_normal((2, 3, 4000))
    for measure in (metrics.si_sdr, metrics.snr):
        batched = jax.jit(measure)(estimate, reference)
        assert batched.shape == (2, 3)
        single = [[measure(estimate[b, s], reference[b, s]) for s in range(3)] for b in range(2)]
        np.testing.assert_allclose(batched, single, atol=1e-4)


@pytest.mark.parametrize("lengths", [(10, 11), (1, 10), (0, 0)])
def test_lengths_must_agree(lengths):
    with pytest.raises(ValueError, match="equal lengths"):
        metrics.si_sdr(np.ones(lengths[0]), np.ones(lengths[1]))
