"""STFT: equal to librosa's, perfect reconstruction, one compilation."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from opensep_jax import sharding
from opensep_jax.signal.stft import Stft, istft, stft


@pytest.mark.parametrize(
    "n_fft, hop, samples", [(1024, 256, 16001), (1022, 256, 8192), (512, 100, 5000)]
)
def test_equals_librosa(n_fft, hop, samples):
    wave = np.random.default_rng(0).normal(size=(2, samples)).astype(np.float32) * 0.3
    spec = Stft(n_fft, hop)
    ours = np.asarray(jax.jit(stft, static_argnums=1)(wave, spec))
    theirs = librosa.stft(
        wave.astype(np.float64),
        n_fft=n_fft,
        hop_length=hop,
        pad_mode="constant",
        dtype=np.complex128,
    )
    assert ours.shape == theirs.shape == (2, spec.bins, spec.frames(samples))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    back = np.asarray(
        jax.jit(istft, static_argnums=(1, 2))(theirs.astype(np.complex64), spec, samples)
    )
    reference = librosa.istft(theirs, hop_length=hop, n_fft=n_fft, length=samples)
    middle = slice(0, samples - n_fft // 2)
    np.testing.assert_allclose(back[:, middle], reference[:, middle], atol=1e-5)


@pytest.mark.parametrize("samples", [1, 255, 256, 4000, 16384])
def test_perfect_reconstruction(samples):
    wave = np.random.default_rng(1).uniform(-1, 1, samples).astype(np.float32)
    spec = Stft(1024, 256)
    back = np.asarray(istft(stft(wave, spec), spec, samples))
    np.testing.assert_allclose(back, wave, atol=2e-6)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="hop_samples.*1024 and 600"):
        Stft(1024, 600)


def test_devices_transform_their_own_rows():
    mesh = sharding.make_mesh(data=8, fsdp=1, tensor=1)
    spec, rows = Stft(64, 16), sharding.batch_sharding(mesh)
    wave_BT = np.random.default_rng(0).normal(size=(8, 320)).astype(np.float32)
    transform = jax.jit(lambda wave_BT: stft(wave_BT, spec), in_shardings=rows, out_shardings=rows)
    assert "all-gather" not in transform.lower(wave_BT).compile().as_text()
    whole = stft(jnp.asarray(wave_BT), spec)
    np.testing.assert_array_equal(transform(wave_BT), whole)


def test_gradient():
    """Of a linear map: its transpose, as a product of inner products tells."""
    rng = np.random.default_rng(1)
    wave_T = jnp.asarray(rng.normal(size=320), jnp.float32)
    weight_FN = jnp.asarray(rng.normal(size=(33, 21)), jnp.float32)

    def power(wave_T: jax.Array) -> jax.Array:
        return jnp.sum(weight_FN * jnp.abs(stft(wave_T, Stft(64, 16))) ** 2)

    np.testing.assert_allclose(
        jnp.vdot(jax.grad(power)(wave_T), wave_T), 2 * power(wave_T), rtol=1e-4
    )
