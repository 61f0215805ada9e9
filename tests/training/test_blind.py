"""Outputs in no order: which one a target gets, and a baseline that trains and is scored so."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax import sharding, tasks
from opensep_jax.checkpoint import shipped
from opensep_jax.training import unconditional_task
from opensep_jax.training.blind import outputs_of_sources, permuted, remixed
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("compile_once")
SHUFFLES = np.array([[2, 0, 3, 1], [1, 3, 0, 2]])


def _squares(target: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.square(target - mask).sum((-2, -1))


@pytest.fixture(scope="module")
def targets() -> np.ndarray:
    """Disjoint masks of four sources, [B, S, F, N]."""
    owner = np.random.default_rng(0).integers(4, size=(2, 1, 6, 9))
    return (owner == np.arange(4)[:, None, None]).astype(np.float32)


def test_masks_get_the_order_of_their_targets(targets: np.ndarray):
    shuffled = np.take_along_axis(targets, SHUFFLES[:, :, None, None], axis=1)
    np.testing.assert_array_equal(permuted(_squares, targets, shuffled), targets)


def test_masks_are_added_up_to_the_mixtures(targets: np.ndarray):
    shuffled = np.take_along_axis(targets, SHUFFLES[:, :, None, None], axis=1)
    mixtures = np.stack([targets[:, 0::2].sum(1), targets[:, 1::2].sum(1)], axis=1)
    np.testing.assert_array_equal(remixed(_squares, mixtures, shuffled), mixtures)


def test_the_assignment_costs_least_and_the_gradient_goes_through_it(targets: np.ndarray):
    rng = np.random.default_rng(1)
    masks = rng.uniform(size=targets.shape).astype(np.float32)
    mixtures = np.stack([targets[:, 0::2].sum(1), targets[:, 1::2].sum(1)], axis=1)
    by_order = [_squares(targets, masks[:, order]).sum(1) for order in
                map(list, itertools.permutations(range(4)))]  # fmt: skip
    found = _squares(targets, permuted(_squares, targets, masks)).sum(1)
    np.testing.assert_allclose(found, np.min(by_order, axis=0), rtol=1e-5)
    by_group = []
    for first in itertools.product((0, 1), repeat=4):
        groups = np.stack([np.array(first), 1 - np.array(first)])
        sums = np.einsum("gp,bpfn->bgfn", groups, masks)
        by_group.append(_squares(mixtures, sums).sum(1))
    found = _squares(mixtures, remixed(_squares, mixtures, masks)).sum(1)
    np.testing.assert_allclose(found, np.min(by_group, axis=0), rtol=1e-5)
    gradient = jax.grad(lambda m: _squares(targets, permuted(_squares, targets, m)).sum())(masks)
    best = np.argmin(by_order, axis=0)
    orders = np.array(list(itertools.permutations(range(4))))[best]
    placed = np.take_along_axis(masks, orders[:, :, None, None], axis=1)
    back = np.take_along_axis(2 * (placed - targets), np.argsort(orders)[:, :, None, None], axis=1)
    np.testing.assert_allclose(gradient, back, atol=1e-5)


def test_sources_get_their_outputs_and_spare_ones_are_left():
    sources = np.random.default_rng(2).standard_normal((2, 2, 400)).astype(np.float32)
    noise = np.random.default_rng(3).standard_normal((2, 4, 400)).astype(np.float32)
    stems = noise.copy()
    stems[0, [3, 1]] = sources[0] + 0.1 * noise[0, :2]
    stems[1, [0, 2]] = sources[1] + 0.1 * noise[1, :2]
    sources[1, 1] = 0  # a silent source is nobody's
    order = np.asarray(jax.jit(outputs_of_sources)(stems, sources))
    assert order[0].tolist() == [3, 1] and order[1, 0] == 0 and order[1, 1] != 0


@pytest.mark.parametrize("assignment, fewest", [("pit", 2), ("mixit", 4)])
def test_losses_of_ideal_masks_do_not_depend_on_their_order(
    tiny_dataset: Path, assignment: str, fewest: int, monkeypatch: pytest.MonkeyPatch
):
    """And the loss of a batch is the mean of its parts', with up to four clips in a mixture."""
    counts = {f"mix__counts__{fewest}": 0.5, "mix__counts__4": 0.5}
    run = tiny_run.start(
        tiny_dataset, task="unconditional", unconditional__assignment=assignment, **counts
    )
    batch, key = next(run.batches(0)), run.key
    assert set(batch["count"]) == {fewest, 4}

    @jax.jit
    def loss(order_P: jax.Array, part: dict) -> jax.Array:
        def ideal(net: object, params: dict, power_BFN: jax.Array) -> jax.Array:
            drawn = unconditional_task.make_targets(run.task, part, key)
            power = jnp.abs(drawn["target"]) ** 2
            return jnp.take(power / power.sum(1, keepdims=True), order_P, axis=1)

        monkeypatch.setattr(unconditional_task, "blind_masks", ideal)
        return run.task.loss({}, part, {}, key)[0]

    expected = float(loss(jnp.arange(4), batch))
    assert float(loss(jnp.array([3, 1, 0, 2]), batch)) == pytest.approx(expected, rel=1e-5)
    half = {k: v[:4] for k, v in batch.items()}, {k: v[4:] for k, v in batch.items()}
    halves = [float(loss(jnp.array([2, 3, 0, 1]), part)) for part in half]
    assert np.mean(halves) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_baseline_trains_is_validated_and_says_what_it_is(tiny_dataset: Path):
    run, step_fn = tiny_run.stepper(
        tiny_dataset, data=2, task="unconditional", unconditional__assignment="mixit",
        mix__pairs="none", mix__targets=0,
    )  # fmt: skip
    init = jax.jit(lambda key: tiny_run.init_state(run.task.init(key), run.tx))
    state = jax.device_put(jax.device_get(init(run.key)), run.layout)
    before = np.asarray(state.params["prompts"])
    batch = sharding.shard_batch(next(run.batches(0)), run.mesh)
    for _ in range(3):  # the first has a learning rate of zero
        state, metrics = step_fn(state, batch, run.constants, run.key)
    assert np.isfinite(float(metrics["loss"])) and not state.halted
    assert np.abs(np.asarray(state.params["prompts"]) - before).max() > 1e-5
    scores, exhibit = run.task.validate(jax.device_get(state.ema), run.mesh)
    assert np.isfinite(list(scores.values())).all() and list(exhibit.pictures) == ["2_sources/0"]
    description = tasks.describe(run.config, run.task)
    assert description["prompts"] == {"outputs": 4, "width": 16}
    shipped._check_config(description, "here", "unconditional")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"unconditional__assignment": "order"}, "assignment='order' is not known; known: pit"),
        ({"unconditional__outputs": 3}, "outputs=3, but .* up to 4 clips"),
        (
            {"unconditional__assignment": "mixit", "mix__counts__3": 0.1},
            "mixit, but mix.counts draws mixtures of 3 clips: .* a clip alone",
        ),
        ({"model__size": "paper_debug"}, "model.size: .* task=separator only"),
    ],
)
def test_what_cannot_be_trained_is_named(tiny_dataset: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny_run.start(tiny_dataset, task="unconditional", **changes)
