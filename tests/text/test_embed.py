"""Token states of prompts: a function of the prompt alone, cut where a property ends."""

import json
import logging
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from opensep_jax.text import embed
from opensep_jax.text.embed import TextEncoder, load_text_encoder
from tests.tiny_text_encoder import MAX_TOKENS, write_tiny_bert

PROMPTS = [
    "dog: loud barks, high pitched",
    "cello",
    "the dog",
    "a cello, low pitched; soft, " * 4 + "loud",
    "",
    "Dog",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return load_text_encoder(str(folder))


def _equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_states_are_unpadded_bfloat16_in_order(encoder: TextEncoder):
    states = encoder.encode(PROMPTS)
    assert [s.dtype for s in states] == [ml_dtypes.bfloat16] * len(PROMPTS)
    # Words of the vocabulary and punctuation are one token each; two special tokens are added.
    assert [s.shape for s in states] == [(n + 2, 16) for n in (7, 1, 2, 4 * 8 + 1, 0, 1)]
    assert encoder.width == 16
    assert encoder.max_tokens == MAX_TOKENS
    assert all(s.base is None for s in states)  # no row keeps its padded batch alive


def test_states_do_not_depend_on_company_or_order(encoder: TextEncoder):
    many = [f"{prompt} {i}" for i in range(7) for prompt in PROMPTS]  # several batches per length
    together = encoder.encode(many)
    assert _equal(together, [encoder.encode([prompt])[0] for prompt in many])
    assert _equal(together, encoder.encode(many[::-1])[::-1])
    assert not np.array_equal(together[1], together[7])


def test_states_equal_torch(encoder: TextEncoder, folder: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt, states in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        with torch.no_grad():
            inputs = tokenizer(prompt, return_tensors="pt", truncation=False)
            want = model(**inputs).last_hidden_state[0].numpy()
        assert states.shape == want.shape
        np.testing.assert_allclose(states.astype(np.float32), want, rtol=2**-8, atol=1e-5)


def test_tokenizer_without_json_gives_the_same(encoder: TextEncoder, tmp_path: Path):
    pytest.importorskip("transformers")
    folder = write_tiny_bert(tmp_path)
    (folder / "tokenizer.json").unlink()
    assert _equal(load_text_encoder(str(folder)).encode(PROMPTS), encoder.encode(PROMPTS))


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("dog: loud, high, low pitched bark", "dog: loud, high"),  # 8 of 9 tokens fit
        ("dog: loud, high, soft, low, pitched", "dog: loud, high, soft"),
        ("the cello. a dog barks the loud loud", "the cello"),
        ("the cello; a dog barks the loud loud", "the cello"),
        ("dog: 2.5 a loud high low soft", "dog: 2.5 a loud high"),  # a decimal point is no boundary
        (", dog dog dog dog dog dog dog dog", ","),
        ("dog dog dog dog dog dog dog dog dog", "dog dog dog dog dog dog dog dog"),
    ],
)
def test_long_prompts_are_cut_behind_a_property(folder: Path, caplog, prompt: str, kept: str):
    encoder = load_text_encoder(str(folder), max_tokens=10)
    with caplog.at_level(logging.WARNING):
        cut, whole, short = encoder.encode([prompt, kept, "dog"])
    assert np.array_equal(cut, whole)
    assert short.shape == (3, 16)
    assert encoder.truncated == 1
    assert "1 of 3 prompts exceed 10 tokens" in caplog.text


def test_no_more_tokens_than_the_network_takes(encoder: TextEncoder):
    before = encoder.truncated
    (states,) = encoder.encode(["dog " * 500])
    assert states.shape == (MAX_TOKENS, 16)
    assert encoder.truncated == before + 1


def test_prompts_are_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch):
    encoder, runs = load_text_encoder(str(folder)), []
    real = encoder._run
    monkeypatch.setattr(encoder, "_run", lambda *args: runs.append(args) or real(*args))
    monkeypatch.setattr(embed, "_REMEMBERED", 3)
    first = encoder.encode(["dog", "cello", "dog"])
    assert len(runs) == 1 and len(runs[0][0]) == 2
    assert _equal(encoder.encode(["cello", "dog", "dog"]), [first[1], first[0], first[0]])
    assert len(runs) == 1
    encoder.encode(["bark", "high"])  # the cello has not been asked for the longest
    assert _equal(encoder.encode(["dog"]), first[:1]) and len(runs) == 2
    encoder.encode(["cello"])
    assert len(runs) == 3


def test_compiles_once_per_length(folder: Path):
    encoder = load_text_encoder(str(folder))
    for count in (1, 3, 20):
        encoder.encode(["dog", "loud dog " * 10] * count)
    assert encoder._apply._cache_size() == 2


def test_id_names_the_weights_not_the_place(encoder: TextEncoder, tmp_path: Path):
    same = load_text_encoder(str(write_tiny_bert(tmp_path / "elsewhere")))
    other = load_text_encoder(str(write_tiny_bert(tmp_path / "other", layers=1)))
    assert encoder.id == same.id
    assert encoder.id.startswith("bert-2x16-") and len(encoder.id) == len("bert-2x16-") + 16
    assert other.id != encoder.id


def test_misuse_is_named(encoder: TextEncoder, tmp_path: Path):
    assert encoder.encode([]) == []
    with pytest.raises(ValueError, match="list of prompts"):
        encoder.encode("dog")
    config = json.loads((write_tiny_bert(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type is 'llama'"):
        load_text_encoder(str(tmp_path))


@pytest.mark.real_weights
def test_minilm_knows_what_sounds_alike():
    encoder = load_text_encoder("minilm")
    assert (encoder.id, encoder.width) == ("bert-6x384-53aa51172d142c89", 384)
    states = encoder.encode(["a dog is barking", "barking hound", "a violin is playing"])
    mean = np.stack([s.astype(np.float32).mean(axis=0) for s in states])
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    similar, different = mean[0] @ mean[1], mean[0] @ mean[2]
    assert similar > 0.6 > 0.3 > different


def test_what_will_be_cut_is_known_before(folder: Path):
    short = load_text_encoder(str(folder), max_tokens=8)
    told = short.exceeds(PROMPTS)
    assert told == [True, False, False, True, False, False]
    short.encode(PROMPTS)
    assert short.truncated == sum(told)
