"""Brings the predecessor's public weights into a checkpoint that infer, evaluate and train take.

    python -m opensep_jax.import_predecessor model_weights.pth.tar --out FOLDER
    python -m opensep_jax.infer MIXTURE.wav --checkpoint FOLDER --query "a dog barks" --out OUT

The file is the one that microsoft/BiModalAudioSeparation links to: its separator, and LAION-CLAP.
Of CLAP, FOLDER/text_encoder keeps RoBERTa; to evaluate or to train, give it to `prepare`. The
tokenizer is not in the file and is taken from `--tokenizer`.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from opensep_jax import __version__
from opensep_jax.checkpoint import shipped, weights
from opensep_jax.cli import run
from opensep_jax.models.convert import convert
from opensep_jax.models.paper_table import PAPER_TABLE, PAPER_TEXT_PREFIX
from opensep_jax.models.pth import read_pth
from opensep_jax.separator import abstract_params, net_of
from opensep_jax.text.embed import load_text_encoder
from opensep_jax.text.tokenizer import load_tokenizer

TOKENS = 77  # of every prompt, padding included
_TEXT_NAME = re.compile(PAPER_TEXT_PREFIX + r"((?:embeddings|encoder)\..*(?<!_ids))")
_WORDS = "embeddings.word_embeddings.weight"
_HEAD_CHANNELS = 64  # of RoBERTa, in all its sizes


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="opensep_jax.import_predecessor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("file", type=Path, help="model_weights.pth.tar")
    flags.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    flags.add_argument(
        "--tokenizer", default="roberta-base", help="folder or hub id; default roberta-base"
    )
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Converts one file."""
    import_weights(args.file, args.out, args.tokenizer)
    return 0


def import_weights(file: Path, out: Path, tokenizer: str, size: str = "paper") -> None:
    """Writes the checkpoint; an earlier one in `out` is replaced.

    Args:
        file: of the predecessor's training, or the published one.
        out: folder; it gets `model.safetensors` in float32, `config.json` and `text_encoder/`.
        tokenizer: folder that holds RoBERTa's tokenizer, or weights by name.
        size: of the network, a name in `models.paper.PAPER_SIZES`.

    Raises:
        ValueError: the file cannot be read, or its tensors are not those of the network; all that
            are missing, unknown or of another shape are named.
        WeightsError: the tokenizer could not be downloaded.
    """
    tensors = read_pth(file, "state_dict")
    text = _text_tensors(file, tensors)
    width = text[_WORDS].shape[1]
    config = {
        "schema": shipped.SCHEMA_VERSION,
        "task": "separator",
        "model": {"size": size, "dtype": "float32"},
        "stft": {"n_fft_samples": 1022, "hop_samples": 256},
        "sample_rate_hz": 16000,
        "window_s": 511 * 256 / 16000,  # 512 frames
        "origin": {"file": file.name, "sha256": weights.content_hash([file])},
        "version": __version__,
    }
    params = convert(tensors, PAPER_TABLE, abstract_params(net_of(config), width))
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as scratch:
        folder = Path(scratch, "text_encoder")
        _write_text_encoder(folder, text, tokenizer)
        encoder_id = load_text_encoder(str(folder)).id
        config["text_encoder"] = {
            "name": folder.name, "id": encoder_id, "width": width, "max_tokens": TOKENS
        }  # fmt: skip
        shipped.export(out, params, config, np.float32)
        if (out / folder.name).exists():  # of an earlier import
            (out / folder.name).rename(Path(scratch, "old"))
        folder.rename(out / folder.name)


def _text_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """RoBERTa's tensors by the names that it is published under."""
    matches = {name: _TEXT_NAME.fullmatch(name) for name in tensors}
    found = {match[1]: tensors[name] for name, match in matches.items() if match}
    if _WORDS not in found:
        raise ValueError(f"{file} holds no text encoder: no name ends in {_WORDS}")
    return found


def _write_text_encoder(folder: Path, tensors: Mapping[str, np.ndarray], tokenizer: str) -> None:
    """A folder as a model hub would hold it; its config fixes the number of tokens."""
    vocab_size, width = tensors[_WORDS].shape
    config = {
        "model_type": "roberta",
        "hidden_act": "gelu",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith("attention.self.query.bias") for name in tensors),
        "num_attention_heads": width // _HEAD_CHANNELS,
        "intermediate_size": len(tensors["encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(tensors["embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(tensors["embeddings.token_type_embeddings.weight"]),
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "fixed_tokens": TOKENS,
    }
    source = Path(tokenizer)
    source = source if source.is_dir() else weights.resolve(tokenizer)
    folder.mkdir()
    load_tokenizer(source).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def cli() -> None:
    """Entry point of `opensep-import-predecessor`."""
    sys.exit(run(main, parser(), (ValueError, weights.WeightsError)))


if __name__ == "__main__":
    cli()
