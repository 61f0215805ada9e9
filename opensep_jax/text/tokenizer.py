"""Tokenizers of published models."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


def load_tokenizer(folder: Path) -> "tokenizers.Tokenizer":
    """Loads the fast tokenizer of a published model, without padding and truncation of its own.

    Args:
        folder: Holds `tokenizer.json`, or the older vocabulary files that transformers knows.
    """
    import tokenizers  # lazily, like transformers: importing this module stays cheap

    if (folder / "tokenizer.json").is_file():
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
