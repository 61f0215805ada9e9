"""The U-Net: shapes and sizes, what prompts may influence, and what is shared between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models import unet
from opensep_jax.models.unet import SIZES, UNet
from opensep_jax.separator import network_level

WIDTH = 16  # of a token state
BINS = 65
GATED = {"gate_channels": 8}  # as in `base`, so that all of the network is seen


@functools.cache
def _net(size: str = "debug", **options) -> UNet:
    return UNet(**(SIZES[size] | (GATED if size == "debug" else {}) | options))


@functools.cache
def _params() -> dict:
    """Random parameters under which everything has an effect (small kernels are small at first)."""
    inputs = jnp.zeros((1, BINS, 8)), jnp.zeros((1, 1, 4, WIDTH)), jnp.ones((1, 1, 4), bool)
    shapes = jax.eval_shape(_net().init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)

    def draw(path, x):
        return (("scale" in str(path[-1])) + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _jitted(**options):
    return jax.jit(lambda params, *inputs: _net(**options).apply({"params": params}, *inputs)[0])


def _apply(*inputs, **options) -> np.ndarray:
    return np.asarray(_jitted(**options)(_params(), *inputs))


@functools.cache
def _gradients():
    """Gradients of the sum of squares of the logits: by parameter, and by text state."""

    def total(params, level, text, mask):
        return jnp.sum(_net().apply({"params": params}, level, text, mask)[0] ** 2)

    return jax.jit(jax.grad(total, argnums=(0, 2)))


def _inputs(frames: int = 16, batch: int = 2, prompts: int = 3, tokens: int = 6) -> tuple:
    """Most tests share one shape, and so one compilation."""
    rng = np.random.default_rng(0)
    level = rng.standard_normal((batch, BINS, frames)).astype(np.float32)
    text = rng.standard_normal((batch, prompts, tokens, WIDTH)).astype(np.float32)
    return level, text, np.ones((batch, prompts, tokens), bool)


# Sizes


@pytest.mark.parametrize(
    "size, text_width, bins, frames, parameters",
    [
        ("debug", 16, 65, 64, 20_640),
        ("tiny", 384, 513, 192, 2_734_048),
        ("small", 384, 513, 192, 4_672_208),
        ("base", 768, 513, 512, 84_209_936),
    ],
)
def test_real_sizes_build(size, text_width, bins, frames, parameters):
    """Shapes only: nothing is computed."""
    net = _net(size, dtype=jnp.bfloat16)
    inputs = (
        jax.ShapeDtypeStruct((2, bins, frames), jnp.float32),
        jax.ShapeDtypeStruct((2, 3, 40, text_width), jnp.bfloat16),
        jax.ShapeDtypeStruct((2, 3, 40), bool),
    )
    (logits, aux), variables = jax.eval_shape(net.init_with_output, jax.random.key(0), *inputs)
    assert logits.shape == (2, 3, bins, frames) and logits.dtype == jnp.float32
    levels = len(net.widths)
    stride = net.patch * 2 ** (levels - 1)
    pooled = net.linear_bins + (bins - 1 - net.linear_bins) // net.pool_bins
    assert aux["bottom"].shape == (2, pooled // stride, frames // stride, net.widths[-1])
    leaves = jax.tree.leaves(variables["params"])
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    assert sum(leaf.size for leaf in leaves) == parameters


def test_every_size_is_tested():
    assert set(SIZES) == {"debug", "tiny", "small", "base"}


def test_parameters_do_not_depend_on_the_length_of_the_signal():
    def shapes(frames):
        params = jax.eval_shape(_net().init, jax.random.key(0), *_inputs(frames))
        return jax.tree.map(lambda x: x.shape, params)

    assert shapes(1) == shapes(8) == shapes(61)


@pytest.mark.parametrize("frames", [1, 15, 17, 37])
def test_any_number_of_frames(frames):
    apply = functools.partial(_net().apply, {"params": _params()})
    logits, _ = jax.eval_shape(apply, *_inputs(frames))
    assert logits.shape == (2, 3, BINS, frames)


def test_an_odd_number_of_frames_is_continued_at_its_end():
    """The last frame is repeated up to a multiple of the network's stride."""
    level, text, mask = _inputs()
    level[..., 13:] = level[..., 12:13]
    short = _apply(level[..., :13], text, mask)
    np.testing.assert_allclose(short, _apply(level, text, mask)[..., :13], atol=1e-4)


def test_bins_that_cannot_be_pooled_are_named():
    with pytest.raises(ValueError, match=r"model.pool_bins=3 does not divide the 50 bins above"):
        unet.pool_frequency(jnp.zeros((1, 67, 4)), 16, 3)


# Text


def test_what_padding_holds_has_no_effect():
    level, text, mask = _inputs()
    mask[0, 0, 4:] = mask[0, 1, 1:] = mask[1, 0, 5:] = False
    other = np.where(mask[..., None], text, 1e3).astype(np.float32)
    np.testing.assert_array_equal(_apply(level, text, mask), _apply(level, other, mask))
    _, gradient = jax.device_get(_gradients()(_params(), level, text, mask))
    assert not gradient[~mask].any() and (np.abs(gradient[mask]).max(-1) > 0).all()


def test_more_padding_changes_nothing():
    level, text, mask = _inputs()
    mask[..., 4:] = False
    shorter = _apply(level, text[:, :, :4], mask[:, :, :4])
    np.testing.assert_allclose(shorter, _apply(level, text, mask), atol=1e-4)


def test_what_a_prompt_asks_for_is_multiplied_with_what_is_there():
    """Without its products the head is a network without a gate, which the other sizes are."""
    level, text, mask = _inputs()
    params = _params()
    gated = _apply(level, text, mask)
    closed = params | {"gate_prompt": jax.tree.map(jnp.zeros_like, params["gate_prompt"])}
    logits = np.asarray(_jitted()(closed, level, text, mask))
    assert np.abs(gated - logits).mean() > 0.05 * np.abs(gated).mean()
    plain = {name: leaf for name, leaf in params.items() if not name.startswith("gate_")}
    plain["head"] = params["head"] | {"kernel": params["head"]["kernel"][: -GATED["gate_channels"]]}
    apply = UNet(**SIZES["debug"]).apply
    without = jax.jit(lambda p, *inputs: apply({"params": p}, *inputs)[0])(plain, level, text, mask)
    np.testing.assert_allclose(without, logits, atol=1e-5 * np.abs(logits).max())


def test_a_prompt_without_tokens_is_finite():
    level, text, mask = _inputs()
    mask[0, 1] = False
    assert np.isfinite(_apply(level, text, mask)).all()
    for leaf in jax.tree.leaves(_gradients()(_params(), level, text, mask)):
        assert np.isfinite(leaf).all()


def test_prompts_and_mixtures_are_independent_of_each_other():
    level, text, mask = _inputs()
    mask[1, 2, 2:] = False
    together = _apply(level, text, mask)
    scale = np.abs(together).max()
    for b, p in ((0, 0), (1, 2)):
        alone = _apply(level[b : b + 1], text[b : b + 1, p : p + 1], mask[b : b + 1, p : p + 1])
        np.testing.assert_allclose(alone[0, 0], together[b, p], atol=1e-5 * scale)
    permuted = _apply(level[::-1], text[::-1, ::-1], mask[::-1, ::-1])
    np.testing.assert_allclose(permuted[::-1, ::-1], together, atol=1e-5 * scale)
    difference = np.abs(together[:, 0] - together[:, 1]).mean()
    assert difference > 0.2 * np.abs(together).mean()  # the text matters


def test_tokens_are_a_set():
    """A pair's text is its clips' texts side by side; either order asks for the same."""
    level, text, mask = _inputs()
    first, second = (_apply(level, t, mask) for t in (text, text[:, :, [3, 4, 5, 0, 1, 2]]))
    np.testing.assert_allclose(first, second, atol=1e-5 * np.abs(first).max())


# Cost and memory


def _convolutions(prompts: int) -> list[int]:
    """Leading sizes of the inputs of all convolutions, of a batch of 5 mixtures."""
    jaxpr = jax.make_jaxpr(lambda *x: _net().apply({"params": _params()}, *x)[0])(
        *_inputs(16, 5, prompts)
    )
    equations = jaxpr.jaxpr.eqns
    return [
        eqn.invars[0].aval.shape[0]
        for eqn in equations
        if eqn.primitive.name == "conv_general_dilated"
    ]


def test_the_encoder_runs_once_for_each_mixture():
    sizes = SIZES["debug"]
    encoder = 2 * sum(sizes["encoder_blocks"]) + len(sizes["widths"]) - 1
    decoder = 2 * (1 + sum(sizes["decoder_blocks"]))
    for prompts in (1, 3):
        assert sorted(_convolutions(prompts)) == [5] * encoder + [5 * prompts] * decoder


def test_more_prompts_cost_less_than_more_runs():
    net = _net("tiny")

    def flops(prompts):
        inputs = (
            jax.ShapeDtypeStruct((1, 513, 96), jnp.float32),
            jax.ShapeDtypeStruct((1, prompts, 16, 384), jnp.float32),
            jax.ShapeDtypeStruct((1, prompts, 16), bool),
        )
        params = jax.eval_shape(net.init, jax.random.key(0), *inputs)
        return jax.jit(net.apply).lower(params, *inputs).cost_analysis()["flops"]

    one, four = flops(1), flops(4)
    assert 1.5 * one < four < 3.2 * one


def test_remat_recomputes_the_blocks_with_the_same_parameters():
    def jaxpr(net):
        def loss(params):
            return net.apply({"params": params}, *_inputs())[0].sum()

        return str(jax.make_jaxpr(jax.grad(loss))(_params()))

    blocks = sum(SIZES["debug"]["encoder_blocks"]) + sum(SIZES["debug"]["decoder_blocks"])
    blocks += SIZES["debug"]["bottom_blocks"] + 1
    assert jaxpr(_net(remat=True)).count("prevent_cse=") == blocks
    assert "prevent_cse=" not in jaxpr(_net())


def test_bfloat16_is_near_float32():
    rounded = _apply(*_inputs(), dtype=jnp.bfloat16)
    assert rounded.dtype == np.float32
    exact = _apply(*_inputs())
    error = np.sqrt(np.mean((exact - rounded) ** 2) / np.mean(exact**2))
    assert 1e-5 < error < 0.05


# Rearranging


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_unpatchify_inverts_patchify(patch):
    x = np.arange(2 * 8 * 12, dtype=np.float32).reshape(2, 8, 12)
    patches = unet.patchify(jnp.asarray(x), patch)
    assert patches.shape == (2, 8 // patch, 12 // patch, patch**2)
    np.testing.assert_array_equal(patches[1, 1, 2].reshape(patch, patch),
        x[1, patch : 2 * patch, 2 * patch : 3 * patch])  # fmt: skip
    np.testing.assert_array_equal(unet.unpatchify(patches, patch), x)


@pytest.mark.parametrize("linear_bins, pool", [(16, 3), (64, 1), (64, 3), (4, 5)])
def test_pooling_keeps_low_bins_and_averages_the_others(linear_bins, pool):
    x = np.random.default_rng(0).standard_normal((2, 65, 7)).astype(np.float32)
    pooled = unet.pool_frequency(jnp.asarray(x), linear_bins, pool)
    assert pooled.shape == (2, linear_bins + (64 - linear_bins) // pool, 7)
    np.testing.assert_array_equal(pooled[:, :linear_bins], x[:, :linear_bins])
    if pooled.shape[1] > linear_bins:
        np.testing.assert_allclose(
            pooled[:, linear_bins], x[:, linear_bins : linear_bins + pool].mean(1), atol=1e-6
        )
    back = unet.unpool_frequency(pooled, 65, linear_bins, pool)
    assert back.shape == x.shape
    np.testing.assert_array_equal(back[:, -1], back[:, -2])  # Nyquist
    np.testing.assert_allclose(unet.pool_frequency(back, linear_bins, pool), pooled, atol=1e-6)


@pytest.mark.parametrize("dtype, within", [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_joining_is_the_sum_of_repeated_arrays_and_so_are_its_gradients(dtype, within):
    rng = np.random.default_rng(0)
    shapes = (2, 6, 8, 5), (6, 3, 4, 5), (6, 6, 8, 5)  # two mixtures of three prompts
    skip, x, weight = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)

    def repeated(skip, x):
        return jnp.repeat(skip, 3, 0) + jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)

    np.testing.assert_array_equal(unet._join(skip, x), repeated(skip, x))
    got, want = (
        jax.grad(lambda *inputs, join=join: jnp.sum(join(*inputs) * weight), argnums=(0, 1))(
            *(a.astype(kind) for a in (skip, x))
        )
        for join, kind in ((unet._join, dtype), (repeated, jnp.float32))
    )
    for ours, theirs, like in zip(got, want, (skip, x), strict=True):
        assert ours.dtype == dtype and ours.shape == like.shape
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=4 * within, rtol=within)


# Input


@pytest.mark.parametrize("gain", [1e-3, 1.0, 50.0])
def test_the_networks_input_does_not_depend_on_gain(gain):
    power = np.random.default_rng(0).gamma(0.3, size=(2, BINS, 20)).astype(np.float32)
    level, louder = (np.asarray(network_level(jnp.asarray(p))) for p in (power, gain**2 * power))
    np.testing.assert_allclose(louder, level, atol=1e-4)
    assert -2 < level.min() < -1 and 1.5 < level.max() < 4
    silent = np.asarray(network_level(jnp.zeros((1, BINS, 4))))
    np.testing.assert_allclose(silent, 1.5 + 0.25 * np.log(2.5e-6), rtol=1e-6)
