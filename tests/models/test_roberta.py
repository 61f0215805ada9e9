"""Our encoder against transformers' torch classes, and what its configuration refuses."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.checkpoint import weights
from opensep_jax.models.convert import convert
from opensep_jax.models.roberta import ROBERTA_CONFIGS, Roberta, RobertaConfig
from opensep_jax.models.safetensors import read_safetensors
from opensep_jax.models.tables import ROBERTA_TABLE
from tests.tiny_text_encoder import write_tiny_bert

ROBERTA_BASE_HF = {  # the published config.json of roberta-base
    "architectures": ["RobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}


def _load(config: RobertaConfig, tensors) -> tuple[Roberta, dict]:
    network = Roberta(config)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    abstract = jax.eval_shape(network.init, jax.random.key(0), ids, ids)["params"]
    return network, convert(tensors, ROBERTA_TABLE, abstract)


def _batch(config: RobertaConfig, lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    mask_BL = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    ids_BL = rng.integers(config.pad_id + 1, config.vocab_size, mask_BL.shape)
    return np.where(mask_BL, ids_BL, config.pad_id).astype(np.int32), mask_BL


@functools.partial(jax.jit, static_argnums=0)
def _apply(network: Roberta, variables, ids_BL, mask_BL) -> jax.Array:
    return network.apply(variables, ids_BL, mask_BL)


def _difference(network, params, torch_model, lengths=(12, 7, 1)) -> float:
    """Largest difference at tokens; torch's scale of the states is about 1."""
    torch = pytest.importorskip("torch")
    ids_BL, mask_BL = _batch(network.config, lengths)
    ours_BLC = _apply(network, {"params": params}, ids_BL, mask_BL)
    with torch.no_grad():
        theirs_BLC = torch_model.eval()(
            input_ids=torch.tensor(ids_BL).long(), attention_mask=torch.tensor(mask_BL).long()
        ).last_hidden_state.numpy()
    assert ours_BLC.shape == theirs_BLC.shape
    return float(np.abs(np.asarray(ours_BLC) - theirs_BLC)[mask_BL].max())


def test_equals_torch_roberta_base():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    hf_config = transformers.RobertaConfig(**ROBERTA_BASE_HF)
    model = transformers.RobertaModel(hf_config, add_pooling_layer=False)
    # Fresh norms and biases are ones and zeros: move them, so that a swapped one shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tensors = {f"roberta.{name}": t.numpy() for name, t in model.state_dict().items()}
    network, params = _load(RobertaConfig.from_hf(ROBERTA_BASE_HF), tensors)
    assert _difference(network, params, model) <= 1e-4


def test_equals_torch_tiny_bert(tmp_path: Path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = write_tiny_bert(tmp_path / "bert")
    config = RobertaConfig.from_hf(json.loads((folder / "config.json").read_text()))
    network, params = _load(config, read_safetensors(folder))
    model = transformers.BertModel.from_pretrained(folder)
    assert _difference(network, params, model) <= 1e-5


@pytest.mark.real_weights
def test_equals_torch_minilm():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = weights.resolve("minilm")
    config = RobertaConfig.from_hf(json.loads((folder / "config.json").read_text()))
    assert config == ROBERTA_CONFIGS["minilm_l6"]
    network, params = _load(config, read_safetensors(folder))
    model = transformers.BertModel.from_pretrained(folder)
    assert _difference(network, params, model, lengths=(40, 17, 3)) <= 1e-4


@pytest.fixture(scope="module")
def tiny() -> tuple[Roberta, dict]:
    network = Roberta(ROBERTA_CONFIGS["tiny"])
    ids = jnp.zeros((1, 1), jnp.int32)
    return network, jax.jit(network.init)(jax.random.key(0), ids, ids)


@pytest.mark.parametrize("left", [False, True])
def test_padding_does_not_change_tokens(tiny, left: bool):
    network, variables = tiny
    ids_BL, _ = _batch(network.config, (9,))
    alone_BLC = _apply(network, variables, ids_BL, np.ones_like(ids_BL))
    pad = ((0, 0), (6, 0) if left else (0, 6))
    # Other ids than the padding id under the mask: only the mask may count.
    padded = np.pad(ids_BL, pad, constant_values=5), np.pad(np.ones_like(ids_BL), pad)
    padded_BLC = _apply(network, variables, *padded)
    tokens = slice(6, None) if left else slice(0, 9)
    np.testing.assert_allclose(padded_BLC[:, tokens], alone_BLC, rtol=0, atol=2e-6)


def test_rows_without_tokens_stay_finite(tiny):
    network, variables = tiny
    ids_BL = np.full((2, 4), 1, np.int32)
    assert np.isfinite(_apply(network, variables, ids_BL, np.zeros((2, 4), bool))).all()


def test_bfloat16_compute_stays_near_float32(tiny):
    network, variables = tiny
    batch = _batch(network.config, (9, 4))
    low_BLC = _apply(Roberta(network.config, jnp.bfloat16), variables, *batch)
    assert low_BLC.dtype == jnp.bfloat16
    error = np.abs(np.asarray(low_BLC, np.float32) - _apply(network, variables, *batch))
    assert error[batch[1]].max() < 0.1  # states have unit variance


def test_too_many_tokens_is_an_error(tiny):
    network, variables = tiny
    ids_BL = np.full((1, 65), 2, np.int32)
    with pytest.raises(ValueError, match="65 tokens; the position table holds 64"):
        _apply(network, variables, ids_BL, np.ones_like(ids_BL))


def test_roberta_base_has_the_published_size():
    config = RobertaConfig.from_hf(ROBERTA_BASE_HF)
    assert config == ROBERTA_CONFIGS["roberta_base"]
    assert config.max_tokens == 512
    ids = jax.ShapeDtypeStruct((2, 512), jnp.int32)
    states, variables = jax.eval_shape(
        Roberta(config).init_with_output, jax.random.key(0), ids, ids
    )
    assert states.shape == (2, 512, 768)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count == 124_055_040  # 124,645,632 of RobertaModel less its pooler's 590,592


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "deberta"}, "model_type is 'deberta'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "decoder"),
        ({"num_attention_heads": 7}, "768 is not divisible by num_attention_heads 7"),
        ({"pad_token_id": None}, "lacks .*pad_token_id"),
    ],
)
def test_unsupported_configs_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RobertaConfig.from_hf(ROBERTA_BASE_HF | change)
