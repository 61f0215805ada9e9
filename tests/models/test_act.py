"""Our ACT against recorded arrays of the published code, and against torch's own layers."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models.act import ACT_CONFIGS, Act, ActConfig
from opensep_jax.models.convert import convert
from opensep_jax.models.greedy import generate
from opensep_jax.models.tables import ACT_TABLE
from tests.random_act import act_shapes, draw_tensor

GOLDEN = Path(__file__).parent.parent / "golden" / "act.npz"
TINY = ACT_CONFIGS["tiny"]


def _draw(config: ActConfig) -> dict[str, np.ndarray]:
    return {name: draw_tensor(name, shape) for name, shape in act_shapes(config).items()}


def _load(config: ActConfig, tensors: dict[str, np.ndarray]) -> tuple[Act, dict]:
    network = Act(config)
    level = jax.ShapeDtypeStruct((1, config.frames, config.mel_bands), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    abstract = jax.eval_shape(network.init, jax.random.key(0), level, ids)
    return network, convert(tensors, ACT_TABLE, abstract)


def _level(config: ActConfig) -> np.ndarray:
    """Two spectrograms in decibels, as the recording had them."""
    shape = (2, config.frames, config.mel_bands)
    return np.float32(np.random.default_rng(0).standard_normal(shape) * 10 - 30)


def _decoder(network: Act, max_new: int) -> Callable:
    """Greedy captions from word 0 on, of (variables, spectrograms, end word)."""
    nothing_V = np.zeros(network.config.vocab_size, bool)

    def decode(variables, level_BNF, end_id):
        return generate(
            network,
            variables,
            level_BNF,
            jnp.zeros(1, jnp.int32),
            max_new=max_new,
            end_id=end_id,
            banned_V=nothing_V,
            banned_first_V=nothing_V,
        )

    return jax.jit(decode)


@pytest.mark.slow
def test_equals_the_published_code():
    config = ActConfig(vocab_size=200, decoder_layers=2)
    assert ActConfig.from_tensors(act_shapes(config)) == config
    network, variables = _load(config, _draw(config))
    golden, level_BNF = np.load(GOLDEN), _level(config)
    memory_BMC = jax.jit(functools.partial(network.apply, method="encode"))(variables, level_BNF)
    found = memory_BMC.swapaxes(0, 1)[::25, :, ::32]
    np.testing.assert_allclose(found, golden["mem"], rtol=0, atol=2e-5)
    logits_BV = jax.jit(network.apply)(variables, level_BNF, np.array([[0, 3, 7], [0, 9, 1]]))
    np.testing.assert_allclose(logits_BV[:, ::10], golden["logits"], rtol=0, atol=2e-5)
    found_BL = _decoder(network, max_new=10)(variables, level_BNF, 199)
    np.testing.assert_array_equal(found_BL, golden["greedy"][:, 1:])


def test_equals_torch_layers():
    torch = pytest.importorskip("torch")
    tensors = _draw(TINY)
    network, variables = _load(TINY, tensors)
    level_BNF, ids_BL = _level(TINY), np.array([[0, 3, 7, 5], [0, 9, 1, 2]])
    want_BV = _torch_logits({k: torch.tensor(v) for k, v in tensors.items()}, level_BNF, ids_BL)
    logits_BV = jax.jit(network.apply)(variables, level_BNF, ids_BL)
    np.testing.assert_allclose(logits_BV, want_BV, rtol=0, atol=1e-5)
    assert np.abs(want_BV[0] - want_BV[1]).max() > 0.1


def _torch_logits(tensors: dict, level_BNF: np.ndarray, ids_BL: np.ndarray) -> np.ndarray:
    """Logits float32 [B, V] of the last word, by torch's transformer layers with these tensors."""
    import torch

    c = TINY

    def linear(x, name: str):
        return torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
    with torch.no_grad():
        norm = torch.nn.BatchNorm1d(c.mel_bands).eval()
        norm.load_state_dict({k.split(".")[-1]: v for k, v in tensors.items() if ".bn0." in k})
        x = norm(torch.tensor(level_BNF).mT).mT.reshape(2, -1, c.patch_frames * c.mel_bands)
        x = linear(x, "encoder.patch_embed.proj")
        x = torch.cat([tensors["encoder.cls_token"].expand(2, -1, -1), x], 1)
        x = x + tensors["encoder.pos_embedding"]
        for i in range(c.encoder_layers):
            layer = torch.nn.TransformerEncoderLayer(
                c.encoder_width, c.encoder_heads, c.encoder_mlp_width, norm_first=True, **options
            )
            layer.load_state_dict(_encoder_names(tensors, f"encoder.blocks.layers.{i}."))
            x = layer(x)
        scale, bias = (tensors[f"encoder.mlp_head.0.{kind}"] for kind in ("weight", "bias"))
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias)
        memory = linear(linear(x, "encoder.mlp_head.1"), "encoder_linear").relu()
        layer = torch.nn.TransformerDecoderLayer(c.width, c.heads, c.mlp_width, **options)
        decoder = torch.nn.TransformerDecoder(layer, c.decoder_layers)
        prefix = "transformer_decoder."
        decoder.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        words = tensors["word_emb.weight"][torch.tensor(ids_BL)] * c.width**0.5
        words = words + tensors["pos_encoder.pe"][: ids_BL.shape[1], 0]
        causal = torch.nn.Transformer.generate_square_subsequent_mask(ids_BL.shape[1])
        return linear(decoder(words, memory, tgt_mask=causal)[:, -1], "dec_fc").numpy()


def _encoder_names(tensors: dict, prefix: str) -> dict:
    """The tensors of an encoder block under torch's names."""
    names = {
        "0.norm.": "norm1.",
        "0.fn.qkv.": "self_attn.in_proj_",
        "0.fn.proj.0.": "self_attn.out_proj.",
        "1.norm.": "norm2.",
        "1.fn.mlp.fc1.": "linear1.",
        "1.fn.mlp.fc2.": "linear2.",
    }
    return {
        ours + kind: tensors[prefix + theirs + kind]
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }


def test_generation_is_the_argmax_of_the_uncached_network():
    network, variables = _load(TINY, _draw(TINY))
    level_BNF, decode = _level(TINY), _decoder(network, max_new=8)
    found_BL = np.asarray(decode(variables, level_BNF, TINY.vocab_size))
    ids_BL = np.pad(found_BL, ((0, 0), (1, 0)))
    for length in (1, 5):
        logits_BV = jax.jit(network.apply)(variables, level_BNF, ids_BL[:, :length])
        np.testing.assert_array_equal(logits_BV.argmax(-1), found_BL[:, length - 1])
    end_id = int(found_BL[0, 4])
    ended_BL = np.cumsum(found_BL == end_id, axis=1) > 0
    np.testing.assert_array_equal(
        decode(variables, level_BNF, end_id), np.where(ended_BL, end_id, found_BL)
    )
    assert ended_BL.any() and not ended_BL.all()


def test_medium_has_the_published_size():
    config = ACT_CONFIGS["medium"]
    level = jax.ShapeDtypeStruct((1, config.frames, config.mel_bands), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(Act(config).init, jax.random.key(0), level, ids)["params"]
    del params["position"]  # a buffer there
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 108_014_917


def test_other_checkpoints_are_refused():
    with pytest.raises(ValueError, match="no tensors word_emb.weight .*: this is not .* ACT"):
        ActConfig.from_tensors({"word_emb.weight": (1, 512)})
