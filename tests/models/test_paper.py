"""The predecessor's network: against recorded arrays, its own code, and its arithmetic by parts."""

import functools
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models import paper
from opensep_jax.models.convert import WeightTableError, convert
from opensep_jax.models.paper import PAPER_SIZES, PaperUNet
from opensep_jax.models.paper_table import PAPER_TABLE
from tests.random_paper import SIZES, TEXT_WIDTH, draw, golden_inputs, paper_shapes

GOLDEN = Path(__file__).parent.parent / "golden" / "paper.npz"
NET = PaperUNet(**SIZES)
# A checkout of microsoft/BiModalAudioSeparation, for the tests against its code.
CHECKOUT = os.environ.get("OPENSEP_PREDECESSOR")


def _shapes(net: PaperUNet, text_width: int) -> dict:
    inputs = jnp.ones((1, 1, 1)), jnp.ones((1, 1, 1, text_width)), jnp.ones((1, 1, 1), bool)
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def _convert(tensors: dict[str, np.ndarray]) -> dict:
    return convert(tensors, PAPER_TABLE, _shapes(NET, TEXT_WIDTH))


@functools.cache
def _params() -> dict:
    return _convert(draw(**SIZES, text_width=TEXT_WIDTH))


@jax.jit
def _logits(params: dict, level: jax.Array, text: jax.Array, mask: jax.Array) -> jax.Array:
    return NET.apply({"params": params}, level, text, mask)[0]


def _all(text: np.ndarray) -> np.ndarray:
    return np.ones(text.shape[:3], bool)


def test_equals_the_published_code():
    """With padded prompts: what padding holds has no effect."""
    level, text = golden_inputs()
    padded = np.concatenate([text, np.full_like(text[:, :, :2], 7.0)], axis=2)
    mask = np.broadcast_to(np.arange(padded.shape[2]) < text.shape[2], padded.shape[:3])
    logits = _logits(_params(), level, padded, mask)
    expected = np.load(GOLDEN)["logits"]
    assert np.abs(expected).max() > 2 and expected.std() > 0.4
    np.testing.assert_allclose(logits[..., ::2, ::3], expected, rtol=0, atol=1e-5)


def test_sharing_over_prompts_changes_nothing():
    """Every prompt with a mixture of its own, instead of three prompts to a mixture."""
    level, text = golden_inputs()
    alone_BPLC = text.reshape(-1, 1, *text.shape[2:])
    alone = _logits(_params(), np.repeat(level, 3, axis=0), alone_BPLC, _all(alone_BPLC))
    alone = alone.reshape(2, 3, *level.shape[1:])[..., ::2, ::3]
    np.testing.assert_allclose(alone, np.load(GOLDEN)["logits"], rtol=0, atol=1e-5)


def test_a_size_that_does_not_fit_is_filled_up_with_silence():
    level, text = golden_inputs()
    short, text = level[:1, :50, :100], text[:1]
    full = np.pad(short, ((0, 0), (0, 14), (0, 28)))
    found, expected = (_logits(_params(), x, text, _all(text)) for x in (short, full))
    np.testing.assert_allclose(found, expected[:, :, :50, :100], rtol=0, atol=1e-5)


def test_published_size():
    shapes = _shapes(PaperUNet(**PAPER_SIZES["paper"]), 768)
    published = paper_shapes(**PAPER_SIZES["paper"], text_width=768)
    unused = sum(math.prod(shape) for name, shape in published.items() if "blocks.0.norm1" in name)
    wanted = sum(math.prod(shape) for name, shape in published.items() if "tracked" not in name)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == wanted - unused == 88_964_517


def test_training_measures_what_evaluation_uses():
    """In training the batch's statistics are used; put into the parameters they do the same."""
    level, text = golden_inputs()
    inputs = level, text, _all(text)
    trained, measured = jax.jit(functools.partial(NET.apply, mutable=["statistics"]))(
        {"params": _params()}, *inputs
    )
    flat = {
        "/".join(key.key for key in path): value
        for path, value in jax.tree_util.tree_leaves_with_path(measured["statistics"])
    }
    x = np.asarray(level)
    np.testing.assert_allclose(flat["input_norm/mean"], [x.mean()], rtol=1e-5)
    np.testing.assert_allclose(flat["input_norm/var"], [x.var()], rtol=1e-5)
    params = jax.tree_util.tree_map_with_path(
        lambda path, old: flat.get("/".join(key.key for key in path), old), _params()
    )
    evaluated = _logits(params, *inputs)
    np.testing.assert_allclose(trained[0], evaluated, rtol=0, atol=1e-4)
    assert np.abs(evaluated - _logits(_params(), *inputs)).max() > 0.1


def test_statistics_get_no_gradient():
    norm, x = paper.BatchNorm(jnp.float32), jnp.arange(24.0).reshape(2, 3, 2, 2)
    params = {name: jnp.full(2, 0.5) for name in ("scale", "bias", "mean", "var")}
    grads = jax.grad(lambda params: jnp.sum(norm.apply({"params": params}, x) ** 2))(params)
    assert {name for name, grad in grads.items() if np.abs(grad).max() > 0} == {"scale", "bias"}


def test_wrong_tensors_are_named():
    tensors = draw(**SIZES, text_width=TEXT_WIDTH)
    tensors["net_sound.extra.weight"] = tensors.pop("net_synthesizer.scale")
    with pytest.raises(WeightTableError) as error:
        _convert(tensors)
    assert "unmapped: net_sound.extra.weight has no rule" in str(error.value)
    assert "unfilled: decoder/head/scale" in str(error.value)


# Against its code


def _predecessor(sizes: dict[str, int], text_width: int) -> object:
    pytest.importorskip("torch")
    if not CHECKOUT:
        pytest.skip("OPENSEP_PREDECESSOR names no checkout of microsoft/BiModalAudioSeparation")
    from tests.predecessor import drawn

    return drawn(Path(CHECKOUT), **sizes, text_width=text_width)


@pytest.mark.slow
def test_equals_the_published_code_at_full_size():
    sizes, bins, frames = PAPER_SIZES["paper"], 512, 256
    network = _predecessor(sizes, 768)
    from tests.predecessor import masks

    rng = np.random.default_rng(1)
    level = np.float32(3 * rng.uniform(size=(1, bins, frames)))
    text = np.float32(rng.standard_normal((1, 2, 77, 768)))
    net = PaperUNet(**sizes)
    params = convert(draw(**sizes, text_width=768), PAPER_TABLE, _shapes(net, 768))
    logits, _ = jax.jit(net.apply)({"params": params}, level, text, _all(text))
    expected = masks(network, level, text)
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_trains_as_the_published_code_with_one_prompt():
    """Output and gradients, where both have the same batch statistics."""
    network = _predecessor(SIZES, TEXT_WIDTH).train()
    import torch

    level, text = golden_inputs()
    weight = np.float32(np.random.default_rng(2).standard_normal((2, 1, *level.shape[1:])))
    theirs = network(torch.as_tensor(level)[:, None], torch.as_tensor(text[:, 0]))
    (theirs * torch.as_tensor(weight)).mean().backward()

    def loss(params: dict) -> tuple[jax.Array, jax.Array]:
        inputs = level, text[:, :1], _all(text[:, :1])
        (logits, _), _ = NET.apply({"params": params}, *inputs, mutable=["statistics"])
        return jnp.mean(logits * weight), logits

    grads, ours = jax.jit(jax.grad(loss, has_aux=True))(_params())
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=2e-5)
    tensors = {name: np.zeros_like(value.numpy()) for name, value in network.state_dict().items()}
    tensors |= {n: p.grad.numpy() for n, p in network.named_parameters() if p.grad is not None}
    expected = _convert(tensors)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-2, atol=1e-5 * scale), grads, expected
    )
