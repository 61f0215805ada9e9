"""GGUF files written here: the same network as the folder, every kind of block, what is refused."""

from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models.convert import convert
from opensep_jax.models.gguf_file import read_gguf
from opensep_jax.models.llama import LlamaConfig, abstract_params
from opensep_jax.models.tables import LLAMA_TABLE, llama_gguf_table
from opensep_jax.text.generate import load_language_model
from opensep_jax.text.tokenizer import tokenizer_from_gguf
from tests.tiny_llama import SPECIAL, TEMPLATE, tiny_config, tiny_tensors, tiny_tokenizer

Type = gguf.GGMLQuantizationType
CONFIG = LlamaConfig.from_hf(tiny_config())


def _write(path: Path, kind: Type = Type.F32, pre: str = "llama-bpe", arch: str = "llama") -> Path:
    """The tiny LLaMA as llama.cpp stores it: rotary channels interleaved, norms in float32."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_block_count(CONFIG.layers)
    writer.add_context_length(CONFIG.max_positions)
    writer.add_embedding_length(CONFIG.width)
    writer.add_feed_forward_length(CONFIG.mlp_width)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_key_length(CONFIG.head_width)
    writer.add_layer_norm_rms_eps(CONFIG.norm_epsilon)
    writer.add_rope_freq_base(CONFIG.rope_base)
    _add_tokenizer(writer, pre)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG.layers)
    for name, array in tiny_tensors().items():
        array = array.astype(np.float32)
        if "q_proj" in name or "k_proj" in name:  # row 2j + half of a head is its row (half, j)
            split = array.reshape(-1, 2, CONFIG.head_width // 2, CONFIG.width)
            array = split.transpose(0, 2, 1, 3).reshape(array.shape)
        own = kind if array.ndim == 2 else Type.F32
        array = gguf.quantize(np.ascontiguousarray(array), own)
        writer.add_tensor(names.get_name(name, (".weight",)), array, raw_dtype=own)
    writer.add_tensor("rope_freqs.weight", np.array(CONFIG.rope_divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    vocab = tiny_tokenizer().get_vocab()
    tokens = [*sorted(vocab, key=vocab.get), "ba"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(["b a"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template(TEMPLATE)


def _params(path: Path) -> dict:
    file = read_gguf(path)
    table = llama_gguf_table(CONFIG.heads, CONFIG.kv_heads)
    return convert(file.tensors, table, abstract_params(CONFIG, jnp.float32))


@pytest.fixture(scope="module")
def want() -> dict:
    return convert(tiny_tensors(), LLAMA_TABLE, abstract_params(CONFIG, jnp.float32))


def test_the_file_holds_the_folders_network(tmp_path, want):
    model = load_language_model(str(_write(tmp_path / "tiny.gguf")), batch=4)
    jax.tree.map(np.testing.assert_array_equal, model._params, want)
    config = model._network.config
    np.testing.assert_allclose(config.rope_divisors, CONFIG.rope_divisors, rtol=1e-6)
    assert config.head_width == 8 and not config.tied
    assert (model.bos, model.eos, model.chat_template) == (256, (257, 258), TEMPLATE)


@pytest.mark.parametrize(
    "kind, bound",
    [
        (Type.F16, 0),  # the folder's bfloat16 of this size fits
        (Type.Q8_0, 1 / 250),  # half a step of 127 on each side of zero
        (Type.Q4_1, 1 / 14),  # half a step of 15 from least to largest
        (Type.Q4_0, 1 / 7),  # a whole step of 8: the largest value's opposite is not there
    ],
)
def test_every_kind_of_block(tmp_path, want, kind, bound):
    found = _params(_write(tmp_path / "tiny.gguf", kind))
    largest = np.abs(want["token"]["embedding"]).max()
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, want)
    for error in (errors["token"]["embedding"], errors["blocks"]["key"]["kernel"]):
        assert bound * largest / 4 <= error <= bound * largest
    assert errors["norm"]["scale"] == 0


def test_tensors_come_in_the_type_asked_for(tmp_path):
    file = read_gguf(_write(tmp_path / "tiny.gguf"), jnp.bfloat16)
    assert {tensor.dtype for tensor in file.tensors.values()} == {jnp.dtype(jnp.bfloat16)}


def test_what_cannot_be_read_is_named(tmp_path):
    path = _write(tmp_path / "tiny.gguf", arch="qwen2")
    with pytest.raises(ValueError, match="tiny.gguf: architecture is 'qwen2'"):
        read_gguf(path).llama_config()
    metadata = read_gguf(_write(tmp_path / "other.gguf", pre="deepseek")).metadata
    with pytest.raises(ValueError, match="tokenizer.ggml.pre is 'deepseek'; known: 'llama-bpe'"):
        tokenizer_from_gguf(metadata)
    with pytest.raises(ValueError, match="tokenizer.ggml.model is 'llama'"):
        tokenizer_from_gguf({**metadata, "tokenizer.ggml.model": "llama"})
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(ValueError, match="tiny.gguf is not a GGUF file"):
        read_gguf(path)


@pytest.mark.parametrize("pre, digits", [("smollm", 3), ("llama-bpe", 1)])
def test_digits_are_cut_as_published(tmp_path, pre, digits):
    metadata = read_gguf(_write(tmp_path / "tiny.gguf", pre=pre)).metadata
    tokens = [*metadata["tokenizer.ggml.tokens"], "42", "423"]
    merges = ["4 2", "42 3"]
    merged = {**metadata, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}
    tokenizer = tokenizer_from_gguf(merged)
    assert len(tokenizer.encode("423")) == digits
    assert tokenizer.decode(tokenizer.encode("a 423 naïve\n")) == "a 423 naïve\n"
