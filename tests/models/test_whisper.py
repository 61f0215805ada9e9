"""Our Whisper against transformers' torch class, and what its configuration refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models.convert import convert
from opensep_jax.models.greedy import generate
from opensep_jax.models.tables import WHISPER_TABLE
from opensep_jax.models.whisper import WHISPER_CONFIGS, Whisper, WhisperConfig

TINY = WHISPER_CONFIGS["tiny"]
TINY_HF = {
    "model_type": "whisper",
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 32,
    "activation_function": "gelu",
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}
PROMPT = (2, 7, 9)


def _abstract(config: WhisperConfig) -> dict:
    mel = jax.ShapeDtypeStruct((1, 2 * config.encoder_positions, config.mel_bands), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Whisper(config).init, jax.random.key(0), mel, ids)["params"]


def _mel(batch: int) -> np.ndarray:
    shape = (batch, 2 * TINY.encoder_positions, TINY.mel_bands)
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def _random_params() -> dict:
    """Large enough that attention and the choice of tokens are far from uniform."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (0.4 * rng.standard_normal(leaf.shape)).astype(np.float32), _abstract(TINY)
    )


@functools.partial(jax.jit, static_argnames=("max_new", "end_id"))
def _generate(params, mel_BNF, banned_V, banned_first_V, *, max_new, end_id):
    return generate(
        Whisper(TINY),
        {"params": params},
        mel_BNF,
        jnp.array(PROMPT),
        max_new=max_new,
        end_id=end_id,
        banned_V=banned_V,
        banned_first_V=banned_first_V,
    )


def _ban(*ids: int) -> np.ndarray:
    return np.isin(np.arange(TINY.vocab_size), ids)


def test_equals_torch_tiny():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert WhisperConfig.from_hf(TINY_HF) == TINY
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**TINY_HF))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = convert(tensors, WHISPER_TABLE, _abstract(TINY))
    mel_BNF = _mel(3)
    ids_BL = np.random.default_rng(4).integers(2, 64, (3, 9))
    with torch.no_grad():
        theirs = model.eval()(
            input_features=torch.tensor(mel_BNF).mT, decoder_input_ids=torch.tensor(ids_BL)
        )
    network, variables = Whisper(TINY), {"params": params}
    states_BNC = jax.jit(functools.partial(network.apply, method="encode"))(variables, mel_BNF)
    error = np.abs(states_BNC - theirs.encoder_last_hidden_state.numpy()).max()
    assert error <= 1e-5
    logits_BLV = jax.jit(network.apply)(variables, mel_BNF, ids_BL)
    assert np.abs(theirs.logits.numpy()).max() > 1
    assert np.abs(logits_BLV - theirs.logits.numpy()).max() <= 1e-4


def test_generation_is_the_argmax_of_the_uncached_network():
    params, mel_BNF = _random_params(), _mel(3)
    network, max_new = Whisper(TINY), 12
    apply = jax.jit(network.apply)
    length = len(PROMPT) + max_new
    for end_id, banned, first in [(63, (), ()), (40, (17,), (11, 40))]:
        ids_BL = np.tile(np.array(PROMPT + (0,) * max_new), (3, 1))
        for i in range(max_new):  # padding behind a position cannot change its logits
            logits_BLV = np.array(apply({"params": params}, mel_BNF, ids_BL))
            logits_BV = logits_BLV[:, len(PROMPT) + i - 1]
            logits_BV[:, list(banned + first if i == 0 else banned)] = -np.inf
            ids_BL[:, len(PROMPT) + i] = logits_BV.argmax(-1)
        want_BL = ids_BL[:, len(PROMPT) : length]
        ended_BL = np.cumsum(want_BL == end_id, axis=1) > 0
        want_BL = np.where(ended_BL, end_id, want_BL)
        found_BL = _generate(
            params, mel_BNF, _ban(*banned), _ban(*first), max_new=max_new, end_id=end_id
        )
        np.testing.assert_array_equal(found_BL, want_BL)
    assert ended_BL.any() and not ended_BL.all()


def test_base_has_the_published_size():
    count = sum(leaf.size for leaf in jax.tree.leaves(_abstract(WHISPER_CONFIGS["base"])))
    assert count == 72_593_920
