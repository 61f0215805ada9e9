"""The small published decoder against transformers, with its real weights."""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from opensep_jax.checkpoint import weights
from opensep_jax.models.gguf_file import read_gguf
from opensep_jax.models.llama import LLAMA_CONFIGS
from opensep_jax.text.generate import LanguageModel, load_language_model
from tests.models.test_llama import logits_of

pytestmark = pytest.mark.real_weights

CAPTIONS = Path(__file__).resolve().parents[2] / "../shared/data/audiocaps_val_captions.csv"
PREFIX = "Caption: A dog barks while rain falls and a man speaks\nSources: dog; rain; man\n\n"
SUBJECTS = ("A dog barks", "Rain falls", "A man, 42, speaks", "Two birds chirp", "A violin plays")
PLACES = ("in a large hall", "while a train passes", "and water splashes", "2.5 metres away")
PROMPTS = [f"Caption: {subject} {place}\nSources:" for subject in SUBJECTS for place in PLACES]
NEW = 12


@pytest.fixture(scope="module", autouse=True)
def _optimised() -> Iterator[None]:
    """Here most of the time goes into running what is compiled, not into compiling it."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_language_model("smollm2", batch=20)


@pytest.fixture(scope="module")
def file() -> Path:
    return next(weights.resolve("smollm2").glob("*.gguf"))


@pytest.fixture(scope="module")
def torch_model(file: Path):
    """transformers' network, filled here: names and rotary rows by the rules of the format."""
    torch = pytest.importorskip("torch")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_theta=1e5,
            tie_word_embeddings=True,
        )
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    tensors = {t.name: t for t in gguf.GGUFReader(file).tensors}
    state = model.state_dict()
    for name, value in state.items():
        if name == "lm_head.weight":
            continue
        tensor = tensors[names.get_name(name, try_suffixes=(".weight",))]
        array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(value.shape)
        if "q_proj" in name or "k_proj" in name:  # row (half, j) of a head is row 2j + half
            rows = np.arange(len(array)).reshape(-1, 64)
            array = array[np.concatenate((rows[:, 0::2], rows[:, 1::2]), axis=1).ravel()]
        value.copy_(torch.tensor(array))
    return model.eval()


def test_sizes_and_tokens_are_the_published_ones(model, file):
    config = read_gguf(file).llama_config()
    assert config.norm_epsilon == pytest.approx(1e-5)  # stored in 32 bits
    assert dataclasses.replace(config, norm_epsilon=1e-5) == LLAMA_CONFIGS["smollm2_135m"]
    assert model.id.startswith("llama-30x576-") and len(model.id) == 29
    assert (model.bos, model.eos, model.max_tokens) == (None, (2,), 8192)
    text = model.render_chat([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert model.decode(model.encode(text, special=True)) == text


def test_logits_equal_torch(model, torch_model):
    torch = pytest.importorskip("torch")
    prompts = [model.encode(PREFIX + prompt) for prompt in PROMPTS]
    length = min(map(len, prompts))
    ids_BL = np.array([prompt[:length] for prompt in prompts])
    with torch.no_grad():
        theirs = torch_model(torch.tensor(ids_BL)).logits.numpy()
    assert np.abs(logits_of(model._network, model._params, ids_BL) - theirs).max() <= 1e-3


def test_greedy_tokens_equal_torch(model, torch_model):
    """Each new token is torch's likeliest behind the ones before: its greedy decoding is ours."""
    torch = pytest.importorskip("torch")
    prefix, suffixes = model.encode(PREFIX), [model.encode(prompt) for prompt in PROMPTS]
    options = {"max_new_tokens": NEW, "stop": model.eos}
    ours = model.generate(prefix, suffixes, **options)
    whole = [prefix + suffix + out for suffix, out in zip(suffixes, ours, strict=True)]
    ids_BL = np.zeros((len(whole), max(map(len, whole))), np.int64)
    for row, ids in enumerate(whole):
        ids_BL[row, : len(ids)] = ids
    with torch.no_grad():
        likeliest_BL = torch_model(torch.tensor(ids_BL)).logits.argmax(-1).numpy()
    for row, (ids, out) in enumerate(zip(whole, ours, strict=True)):
        found = likeliest_BL[row, len(ids) - len(out) - 1 : len(ids)].tolist()
        assert found[: len(out)] == out
        assert len(out) == NEW or found[-1] in model.eos
    assert len({tuple(out) for out in ours}) >= 10


def test_shared_prefix_equals_plain_decoding(model):
    prefix, suffixes = model.encode(PREFIX), [model.encode(prompt) for prompt in PROMPTS[::4]]
    options = {"max_new_tokens": NEW, "stop": model.eos}
    plain = model.generate([], [prefix + suffix for suffix in suffixes], **options)
    assert model.generate(prefix, suffixes, **options) == plain


def test_tokens_equal_transformers_on_captions(model, file):
    if not CAPTIONS.is_file():
        pytest.skip("needs ../shared/data/audiocaps_val_captions.csv")
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with CAPTIONS.open(newline="") as stream:
        captions = [row["caption"] for row in csv.DictReader(stream)]
    assert len(captions) > 2000
    for caption in (*captions, "12 dogs, 3.5 m  away\n\n\tnaïve café …"):
        assert model.encode(caption) == theirs(caption, add_special_tokens=False)["input_ids"]
