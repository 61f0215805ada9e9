"""Tests of BSS-eval against mir_eval, hand-solved cases, and dense solutions of its equations."""

import functools

import jax
import numpy as np
import pytest
import scipy.signal

from opensep_jax.signal.bss_eval import bss_eval_images, bss_eval_sources
from opensep_jax.signal.levinson import solve_block_toeplitz
from opensep_jax.signal.metrics import LIMIT_DB, snr
from opensep_jax.signal.stems import best_permutation, matched

pytestmark = pytest.mark.filterwarnings("ignore:mir_eval.separation:FutureWarning")

SAMPLES, COUNT = 2000, 8  # of most tests, so that they share a compiled program
KINDS = ("leaks", "swapped", "scaled", "delayed", "clipped", "noisy", "filtered", "mixture")


def coloured(rng, shape):
    """Sounds with steep spectra, so that the equations are as ill-conditioned as those of music."""
    white = rng.standard_normal(shape)
    poles = rng.uniform(0.5, 0.95)
    return 0.1 * scipy.signal.lfilter([1.0], np.poly([poles, poles, -0.3]), white, axis=-1)


def damaged(rng, kind, references_ST):
    """An estimate [S, T] of the references with a damage of that kind on top of leakage."""
    estimates = references_ST + rng.uniform(0.05, 0.5) * references_ST[::-1]
    if kind == "swapped":
        return estimates[::-1]
    if kind == "scaled":
        return estimates * 10 ** rng.uniform(-4, 2)
    if kind == "delayed":
        return np.roll(estimates, rng.integers(1, 700), axis=-1)
    if kind == "clipped":
        limit = rng.uniform(0.1, 0.7) * np.abs(estimates).max()
        return np.clip(estimates, -limit, limit)
    if kind == "noisy":
        return estimates + 10 ** rng.uniform(-4, -1) * rng.standard_normal(estimates.shape)
    if kind == "filtered":
        filters = rng.standard_normal((len(estimates), 40))
        return scipy.signal.fftconvolve(estimates, filters, axes=-1)[:, : estimates.shape[-1]]
    if kind == "mixture":
        return np.broadcast_to(references_ST.sum(0), estimates.shape)
    return estimates


def cases(count, samples, seed):
    """Estimates and references, float32 [count, 2, samples]."""
    rng = np.random.default_rng(seed)
    references = np.stack([coloured(rng, (2, samples)) for _ in range(count)]).astype(np.float32)
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    estimates = [damaged(rng, kind, x) for kind, x in zip(kinds, references, strict=True)]
    return np.stack(estimates).astype(np.float32), references


def assert_equal_below_60_db(scores, expected):
    """Within 1e-3 dB; beyond +-60 dB both only need to be there."""
    scores, expected = np.asarray(scores), np.asarray(expected)
    inside = np.abs(expected) < 60
    np.testing.assert_allclose(scores[inside], expected[inside], atol=1e-3)
    assert np.all((np.abs(scores) >= 59.9)[~inside])
    assert np.all((scores > 0) == (expected > 0), where=~inside)


def mir_eval_scores(name, estimates, references, permute=False):
    """The measures, [measures, count, S], and the permutations [count, S] of mir_eval."""
    evaluate = getattr(pytest.importorskip("mir_eval.separation"), name)
    pairs = zip(np.float64(references), np.float64(estimates), strict=True)
    results = [evaluate(reference, estimate, permute) for reference, estimate in pairs]
    return np.array([r[:-1] for r in results]).swapaxes(0, 1), np.array([r[-1] for r in results])


def test_sources_equal_mir_eval():
    estimates, references = cases(2 * COUNT, SAMPLES, seed=0)
    expected, _ = mir_eval_scores("bss_eval_sources", estimates, references)
    batches = zip(np.split(estimates, 2), np.split(references, 2), strict=True)
    scores = np.concatenate([bss_eval_sources(*batch) for batch in batches], axis=1)
    assert_equal_below_60_db(scores, expected)


def test_images_equal_mir_eval_and_their_sdr_is_the_snr():
    """Of one channel; two are among the slow tests."""
    estimates, references = cases(2, SAMPLES, seed=1)
    expected, _ = mir_eval_scores("bss_eval_images", estimates, references)
    scores = bss_eval_images(estimates[:, :, None], references[:, :, None])
    assert_equal_below_60_db(scores, expected)
    np.testing.assert_allclose(scores.sdr, snr(estimates, references), atol=1e-4)


def test_pairs_under_jit_give_the_permutation_of_mir_eval_and_stay_in_float32():
    estimates, references = cases(COUNT, SAMPLES, seed=2)
    expected, orders = mir_eval_scores("bss_eval_sources", estimates, references, permute=True)
    score = jax.jit(functools.partial(bss_eval_sources, pairs=True))
    scores = score(estimates.reshape(2, 4, 2, -1), references.reshape(2, 4, 2, -1))
    assert {(x.shape, x.dtype.name) for x in scores} == {((2, 4, 2, 2), "float32")}
    assert jax.numpy.asarray(np.zeros(1)).dtype == np.float32
    permutation = best_permutation(scores.sir).reshape(orders.shape)
    decided = [kind != "mixture" for kind in KINDS]  # there both orders tie
    np.testing.assert_array_equal(permutation[np.array(decided)], orders[decided])
    assert {tuple(order) for order in orders} == {(0, 1), (1, 0)}
    taken = [matched(measure.reshape(COUNT, 2, 2), orders) for measure in scores]
    assert_equal_below_60_db(taken, expected)


@pytest.mark.slow
@pytest.mark.parametrize("sources, channels, count", [(2, 1, 200), (3, 1, 10), (2, 2, 10)])
def test_many_long_cases_equal_mir_eval(sources, channels, count):
    estimates, references = (
        x.reshape(count, sources, channels, -1)
        for x in cases(count * sources * channels // 2, 16_000, seed=3)
    )
    expected, _ = mir_eval_scores(
        "bss_eval_images", estimates.swapaxes(-1, -2), references.swapaxes(-1, -2)
    )
    assert_equal_below_60_db(bss_eval_images(estimates, references), expected)
    if channels == 1:
        estimates, references = estimates[:, :, 0], references[:, :, 0]
        expected, _ = mir_eval_scores("bss_eval_sources", estimates, references)
        assert_equal_below_60_db(bss_eval_sources(estimates, references), expected)


@pytest.mark.parametrize("name", ["bss_eval_sources", "bss_eval_images"])
def test_identical_signals_exceed_60_db_here_and_in_mir_eval(name):
    if name == "bss_eval_images":  # of shapes that other tests have compiled
        _, references = cases(2, SAMPLES, seed=6)
        scores = bss_eval_images(references[:, :, None], references[:, :, None])
    else:
        _, references = cases(COUNT, SAMPLES, seed=6)
        scores = bss_eval_sources(references, references)
    expected, _ = mir_eval_scores(name, references[:2], references[:2])
    assert np.min(scores) > 60 and expected.min() > 60


def test_silence_identity_and_broken_samples():
    rng = np.random.default_rng(4)
    sound, other = coloured(rng, (2, SAMPLES)).astype(np.float32)
    silence, broken = np.zeros_like(sound), np.where(np.arange(SAMPLES) == 7, np.nan, sound)
    references = [[sound, other], [sound, silence], [sound, other], [sound, other]]
    estimates = [[sound, other], [sound + other, other], [sound, silence], [sound, broken]]
    estimates, references = (np.float32(np.tile(x, (2, 1, 1))) for x in (estimates, references))
    scores = np.array(bss_eval_sources(estimates, references))  # [measures, count, S]
    assert np.all(scores[:, 0] > 60)
    # One source beside silence: nothing interferes, so all that is wrong is an artifact.
    assert scores[1, 1, 0] == LIMIT_DB and scores[0, 1, 0] == pytest.approx(scores[2, 1, 0])
    assert np.isfinite(scores[:, 1, 0]).all() and np.isnan(scores[:, 1, 1]).all()
    assert np.all(scores[:, 2, 1] == -LIMIT_DB) and np.all(scores[:, 2, 0] > 60)
    assert np.all(scores[:, 3, 0] > 60) and np.isnan(scores[:, 3, 1]).all()


def test_references_that_repeat_one_another_leave_the_sdr_alone():
    estimates, references = cases(COUNT, SAMPLES, seed=5)
    alone = bss_eval_sources(estimates, references).sdr[:, 0]
    doubled = np.repeat(references[:, :1], 2, axis=1)
    scores = bss_eval_sources(estimates, doubled)
    np.testing.assert_allclose(scores.sdr[:, 0], alone, atol=1e-4)
    assert np.all(np.asarray(scores.sir[:, 0]) > 60)
    np.testing.assert_allclose(scores.sar[:, 0], alone, atol=1e-3)


@pytest.mark.parametrize(
    "estimates, references", [((2, 9), (2, 8)), ((3, 9), (2, 9)), ((9,), (9,)), ((2, 0), (2, 0))]
)
def test_shapes_must_fit(estimates, references):
    with pytest.raises(ValueError, match=r"shapes .*got \("):
        bss_eval_sources(np.ones(estimates), np.ones(references))


@pytest.mark.parametrize("signals, taps", [(1, 1), (3, 8)])
def test_block_toeplitz_solver_equals_a_dense_one(signals, taps):
    rng = np.random.default_rng(7)
    waves = np.pad(rng.standard_normal((signals, 40)), [(0, 0), (taps, taps)])
    delayed = np.stack([np.roll(waves, delay, axis=-1) for delay in range(taps)], axis=1)
    blocks = np.einsum("ilt,jt->ijl", delayed, waves)
    matrix = np.einsum("ilt,jmt->iljm", delayed, delayed).reshape(signals * taps, -1)
    right = rng.standard_normal((2, signals, taps))
    expected = np.linalg.solve(matrix, right.reshape(2, -1).T).T.reshape(right.shape)
    with jax.enable_x64(True):
        result = jax.jit(solve_block_toeplitz)(blocks, right)
    np.testing.assert_allclose(result, expected, atol=1e-9)
