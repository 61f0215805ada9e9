"""Generation with a tiny random model: sharing, company, grammars, sampling and sharding."""

import collections
from pathlib import Path

import jax
import numpy as np
import pytest

from opensep_jax import sharding
from opensep_jax.text.generate import Grammar, LanguageModel, load_language_model
from tests.models.test_llama import logits_of
from tests.tiny_llama import tiny_config, tiny_tensors, write_tiny_llama

PREFIX = list(b"A dog barks: dog barking\n")
SUFFIXES = [list(text) for text in (b"A cello plays:", b"Rain:", b"A man and a woman speak and:")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_language_model(str(folder), batch=4)


def _write(model: LanguageModel, suffixes=SUFFIXES, prefix=PREFIX, **options) -> list[list[int]]:
    options = {"max_new_tokens": 12, "stop": (), **options}
    return model.generate(prefix, suffixes, **options)


@pytest.fixture(scope="module")
def greedy(model: LanguageModel) -> list[list[int]]:
    return _write(model)


def test_shared_prefix_equals_plain_decoding(model, greedy):
    assert [len(out) for out in greedy] == [12] * 3
    assert len({tuple(out) for out in greedy}) == 3
    assert _write(model, [PREFIX + suffix for suffix in SUFFIXES], prefix=[]) == greedy


def test_greedy_tokens_equal_those_of_transformers(model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny_config())).eval()
    theirs.load_state_dict({k: torch.tensor(v.astype("f4")) for k, v in tiny_tensors().items()})
    rng = np.random.default_rng(4)
    prompts = [rng.integers(0, 256, length).tolist() for length in range(70, 90)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(12):
            with torch.no_grad():
                ids = torch.cat([ids, theirs(ids).logits[:, -1:].argmax(-1)], 1)
        expected.append(ids[0, len(prompt) :].tolist())
    assert _write(model, prompts, prefix=[]) == expected
    assert len(set(map(tuple, expected))) == 20


def test_company_and_order_change_nothing(model, greedy):
    many = [SUFFIXES[i] for i in (1, 2, 0, 2, 1, 0, 0)]  # two batches of four
    assert _write(model, many) == [greedy[i] for i in (1, 2, 0, 2, 1, 0, 0)]
    assert [_write(model, [suffix])[0] for suffix in SUFFIXES] == greedy


def test_any_stop_token_ends_its_own_row(model, greedy):
    stop = (greedy[0][3], greedy[1][5])
    expected = [
        out[: next((i for i, token in enumerate(out) if token in stop), 12)] for out in greedy
    ]
    assert _write(model, stop=stop) == expected
    assert len(expected[0]) <= 3 and len(expected[1]) <= 5


def test_prefix_is_run_once(model, monkeypatch):
    ran = []
    monkeypatch.setattr(model, "_prefixes", collections.OrderedDict())
    monkeypatch.setattr(model, "_run_prefix", lambda ids: ran.append(ids) or run(ids))
    run = type(model)._run_prefix.__get__(model)
    for prefix in (PREFIX, [1], PREFIX, [2], [3], PREFIX, [4], [1]):
        _write(model, SUFFIXES[:1], prefix, max_new_tokens=1)
    assert [ids[0] for ids in ran] == [PREFIX[0], 1, 2, 3, 4, 1]  # the least recent went


def _grammar(*states: dict[int, int]) -> Grammar:
    """From token: next state, one dict for each state."""
    tokens = np.full((len(states), 20), -1, np.int32)
    follow = np.full((len(states), 20), -1, np.int32)
    for i, state in enumerate(states):
        tokens[i, : len(state)] = list(state)
        follow[i, : len(state)] = list(state.values())
    return Grammar(tokens, follow)


def test_a_grammar_that_allows_everything_likely_changes_nothing(model, greedy):
    states = [{token: i + 1} for i, token in enumerate(greedy[0])]
    states[-1] = {greedy[0][-1]: -1}
    others = {token: -1 for token in range(3) if token not in greedy[0]}
    free = _grammar(*(others | state for state in states))
    forced = _grammar({7: 1}, {9: 2}, {11: -1})
    loop = _grammar({5: 0, 6: 0})  # never ends by itself
    outs = _write(model, grammars=[free, forced, loop], max_new_tokens=16)
    assert outs[0] == greedy[0]
    assert outs[1] == [7, 9, 11]
    assert len(outs[2]) == 16 and set(outs[2]) <= {5, 6}
    assert _write(model, grammars=[free, forced, loop], stop=[9, 11])[1] == [7]


@pytest.mark.parametrize(
    "grammar, message",
    [
        (_grammar({999: -1}), "suffix 0: grammar names token 999 of 264"),
        (_grammar({9: 3}), "suffix 0: grammar names token 9 of 264 and state 3 of 1"),
        (_grammar({9: 1}, {}), r"suffix 0: grammar leads to states that allow nothing: \[1\]"),
        (_grammar({}), "suffix 0: grammar allows nothing in state 0"),
    ],
)
def test_grammars_that_cannot_be_followed(model, grammar, message):
    with pytest.raises(ValueError, match=message):
        _write(model, SUFFIXES[:1], grammars=[grammar])


def test_what_does_not_fit_is_named(model):
    with pytest.raises(ValueError, match="suffix 1 is empty"):
        _write(model, [[1], []])
    with pytest.raises(ValueError, match="25 tokens of prefix, 480 of its own and 12 new .* 512"):
        _write(model, [[1] * 480])
    with pytest.raises(ValueError, match="1 grammars for 3 suffixes"):
        _write(model, grammars=[_grammar({1: -1})])
    assert _write(model, []) == []


def test_sampling_follows_seed_and_top_p(model, greedy):
    drawn = _write(model, temperature=1.0, seed=3)
    assert drawn == _write(model, temperature=1.0, seed=3) != greedy
    assert drawn != _write(model, temperature=1.0, seed=4)
    assert _write(model, temperature=1.0, top_p=1e-6) == greedy
    alike = _write(model, [SUFFIXES[0]] * 4, temperature=1.0)
    assert len({tuple(out) for out in alike}) == 4  # rows draw on their own


def test_sampling_has_the_shares_of_the_model(model):
    """Which of two tokens is drawn, in 240 rows, against the softmax of both logits."""
    grammar = _grammar({70: -1, 71: -1})
    options = {"max_new_tokens": 1, "temperature": 1.5, "grammars": [grammar] * 240}
    drawn = np.ravel(_write(model, [SUFFIXES[0]] * 240, **options))
    first, second = (_first_logits(model)[token] for token in (70, 71))
    share = 1 / (1 + np.exp((second - first) / 1.5))
    assert 0.05 < share < 0.95
    assert abs(np.mean(drawn == 70) - share) < 4 * np.sqrt(share * (1 - share) / 240)


def _first_logits(model: LanguageModel) -> np.ndarray:
    ids_BL = np.array([PREFIX + SUFFIXES[0]])
    return logits_of(model._network, model._params, ids_BL)[0, -1]


@pytest.mark.parametrize("tensor", [8, pytest.param(2, marks=pytest.mark.slow)])
def test_eight_devices_equal_one(folder, greedy, tensor):
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=tensor)
    split = load_language_model(str(folder), mesh=mesh, batch=4)
    kernel = split._params["blocks"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 64, 128 // tensor)
    assert _write(split) == greedy
    assert split.id.startswith("llama-2x64-")


def test_a_mesh_that_does_not_divide_the_heads_is_refused(folder):
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=3, devices=jax.devices()[:3])
    with pytest.raises(ValueError, match="tensor=3 .* 8 key-value heads; use mesh.tensor=1 .*=3"):
        load_language_model(str(folder), mesh=mesh)
    mesh = sharding.make_mesh(data=8, fsdp=1, tensor=1)
    with pytest.raises(ValueError, match="batch=4 is not divisible by 8 parts"):
        load_language_model(str(folder), mesh=mesh, batch=4)


def test_the_tokenizer_keeps_templates_out_of_texts(model):
    assert model.encode("a<|eot_id|>", special=True)[1:] == [258]
    plain = model.encode("a<|eot_id|>")
    assert max(plain) < 256 and model.decode(plain) == "a<|eot_id|>"
    assert (model.bos, model.eos, model.max_tokens) == (256, (257, 258), 512)
    text = model.render_chat([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|begin_of_text|><|start_header_id|>user\n\nHi<|eot_id|><|start_header_id|>assistant\n\n"
    )
    assert "assistant" not in model.render_chat([{"role": "user", "content": "Hi"}], False)
