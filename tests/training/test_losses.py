"""Losses against numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.training.losses import magnitude_l1, negative_snr


def _spectra(*values: complex) -> jnp.ndarray:
    """One mixture, one prompt, one bin, a frame for each value: [1, 1, 1, N]."""
    return jnp.asarray(values, jnp.complex64).reshape(1, 1, 1, -1)


def test_negative_snr_by_hand():
    target, mix = _spectra(3 + 4j, 0), _spectra(6 + 8j, 1j)
    mask = jnp.asarray([0.75, 0.5]).reshape(1, 1, 1, 2)
    # Errors (-1.5 - 2j) and -0.5j: energy 6.25 + 0.25 of 25, and the floor of a thousandth.
    expected = 10 * np.log10(6.5 / 25 + 1e-3)
    np.testing.assert_allclose(negative_snr(target, mask, mix), [[expected]], rtol=1e-6)


def test_negative_snr_asks_for_no_more_than_30_db():
    target = _spectra(1, 2j, -3)
    perfect = negative_snr(target, jnp.ones((1, 1, 1, 3)), target)
    np.testing.assert_allclose(perfect, [[-30.0]], rtol=1e-6)


def test_negative_snr_of_silence_is_bounded():
    silence, mix = _spectra(0, 0), _spectra(1, 1)
    open_mask, closed_mask = jnp.ones((1, 1, 1, 2)), jnp.zeros((1, 1, 1, 2))
    np.testing.assert_allclose(negative_snr(silence, open_mask, mix), 30, atol=0.01)
    np.testing.assert_allclose(negative_snr(silence, closed_mask, mix), -30, atol=1e-4)
    assert np.isfinite(negative_snr(silence, open_mask, silence)).all()


def test_negative_snr_does_not_depend_on_gain():
    rng = np.random.default_rng(0)
    target, mix = (
        jnp.asarray(rng.normal(size=(2, 3, 5, 7)) + 1j * rng.normal(size=(2, 3, 5, 7)))
        for _ in range(2)
    )
    mask = jnp.asarray(rng.uniform(size=(2, 3, 5, 7)))
    np.testing.assert_allclose(
        negative_snr(50 * target, mask, 50 * mix), negative_snr(target, mask, mix), rtol=1e-5
    )


def test_magnitude_l1_by_hand():
    target, mix = _spectra(3 + 4j, 0), _spectra(6 + 8j, 0)
    mask = jnp.asarray([0.75, 1.0]).reshape(1, 1, 1, 2)
    # Only the first frame errs: |0.75 * 10 - 5|, weighted by log1p(10), a mean over two frames.
    expected = np.log1p(10) * 2.5 / 2
    np.testing.assert_allclose(magnitude_l1(target, mask, mix), [[expected]], rtol=1e-6)


@pytest.mark.parametrize("magnitude, weight", [(1e-6, 1e-3), (np.e - 1, 1.0), (1e9, 10.0)])
def test_magnitude_l1_bounds_its_weight(magnitude: float, weight: float):
    mix = _spectra(magnitude)
    loss = magnitude_l1(_spectra(0), jnp.ones((1, 1, 1, 1)), mix)
    np.testing.assert_allclose(loss, [[weight * magnitude]], rtol=1e-5)
