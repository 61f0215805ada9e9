"""A text encoder small enough for offline tests: a BERT folder of random weights."""

import json
import string
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file

MAX_TOKENS = 128
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = ("a", "bark", "barks", "cello", "dog", "high", "loud", "low", "pitched", "soft", "the")


def write_tiny_bert(folder: Path, width: int = 16, layers: int = 2) -> Path:
    """Writes config, weights and tokenizer as a model hub would hold them.

    Args:
        folder: Created where needed.
        width: Channels of a token state; even.
        layers: Number of blocks.

    Returns:
        `folder`; its content is a function of the sizes. The vocabulary spells any ASCII text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab = _write_tokenizer(folder)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": MAX_TOKENS,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": len(vocab),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(_random_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write_tokenizer(folder: Path) -> dict[str, int]:
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = dict.fromkeys((*_SPECIAL, *letters, *(f"##{c}" for c in letters), *_WORDS))
    vocab = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    # Published files often carry settings of their own, which the encoder must undo.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8, pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocab


def _random_weights(config: dict) -> dict[str, np.ndarray]:
    """Weights under BertModel's names, with the pooler and buffer that published files have."""
    rng = np.random.default_rng(0)
    width, hidden = config["hidden_size"], config["intermediate_size"]
    tensors: dict[str, np.ndarray] = {}

    def fill(name: str, *shape: int, mean: float = 0.0) -> None:
        tensors[name] = (mean + 0.2 * rng.standard_normal(shape)).astype(np.float32)

    def linear(name: str, inputs: int, outputs: int) -> None:
        fill(f"{name}.weight", outputs, inputs)
        fill(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        fill(f"{name}.weight", width, mean=1.0)
        fill(f"{name}.bias", width)

    fill("embeddings.word_embeddings.weight", config["vocab_size"], width)
    fill("embeddings.position_embeddings.weight", config["max_position_embeddings"], width)
    fill("embeddings.token_type_embeddings.weight", config["type_vocab_size"], width)
    norm("embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", width, hidden)
        linear(f"{layer}.output.dense", hidden, width)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", width, width)
    positions = np.arange(config["max_position_embeddings"])[None]
    tensors["embeddings.position_ids"] = positions
    return tensors
