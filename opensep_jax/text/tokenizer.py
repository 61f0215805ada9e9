"""Tokenizers and chat templates as published with a language model."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

# Ends a turn, beside what a checkpoint's own files list: early uploads of LLaMA 3 forgot it.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>")
_GGUF_CONTROL = 3  # token type of GGUF: has a meaning for the model, never part of a text
# How LLaMA 3 cuts text before merging; source: the pattern of its published tokenizer.json.
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class ChatTokenizer:
    """Text to token ids and back, and the checkpoint's chat template.

    Attributes:
        bos: Id to put in front of a sequence; None where the model wants none.
        eos: Ids that end an answer.
        chat_template: Jinja source of the template; None where the checkpoint has none.
    """

    def __init__(
        self,
        tokenizer: "tokenizers.Tokenizer",
        *,
        bos: int | None,
        eos: Iterable[int],
        chat_template: str | None,
        template_bos: str | None = None,
    ) -> None:
        """Takes what `read_tokenizer` or `tokenizer_from_gguf` has read.

        Args:
            tokenizer: Neither pads nor truncates.
            bos: See the class.
            eos: See the class; ids of known turn ends are added.
            chat_template: See the class.
            template_bos: What the template writes for `bos_token`.
        """
        import tokenizers  # lazily, like transformers: importing this module stays cheap

        ends = (tokenizer.token_to_id(token) for token in _TURN_ENDS)
        self.bos = bos
        self.eos = tuple(dict.fromkeys((*eos, *(end for end in ends if end is not None))))
        self.chat_template = chat_template
        self._template_bos = template_bos
        self._tokenizer = tokenizer
        self._plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; with `special`, template tokens in it count as such."""
        tokenizer = self._tokenizer if special else self._plain
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, template tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def render_chat(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        """Writes messages as the model's chat template does.

        Raises:
            ValueError: The checkpoint has no template.
        """
        if self.chat_template is None:
            raise ValueError("this checkpoint has no chat template")
        import transformers

        writer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=self._tokenizer,
            chat_template=self.chat_template,
            bos_token=self._template_bos,
            eos_token=self._tokenizer.id_to_token(self.eos[0]) if self.eos else None,
        )
        return writer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )


def read_tokenizer(folder: Path) -> ChatTokenizer:
    """Reads the tokenizer of a published folder.

    Args:
        folder: Holds `tokenizer.json`, and where published `tokenizer_config.json`,
            `generation_config.json`, `config.json` and `chat_template.jinja`.

    Raises:
        ValueError: There is no `tokenizer.json`.
    """
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    settings = _json(folder / "tokenizer_config.json")
    bos = _content(settings.get("bos_token"))
    first = tokenizer.encode("", add_special_tokens=True).ids[:1]  # what the model wants in front
    eos: list[int] = []
    for name in ("generation_config.json", "config.json"):
        found = _json(folder / name).get("eos_token_id")
        eos += found if isinstance(found, list) else [found] * (found is not None)
    template = folder / "chat_template.jinja"
    chat_template = settings.get("chat_template")
    if template.is_file():
        chat_template = template.read_text("utf-8")
    elif isinstance(chat_template, list):  # several by name
        chat_template = {entry["name"]: entry["template"] for entry in chat_template}.get("default")
    return ChatTokenizer(
        tokenizer,
        bos=first[0] if first and tokenizer.id_to_token(first[0]) == bos else None,
        eos=eos,
        chat_template=chat_template,
        template_bos=bos,
    )


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> ChatTokenizer:
    """Builds the byte-level BPE tokenizer that a GGUF file describes.

    Args:
        metadata: The file's key-value pairs.

    Raises:
        ValueError: The tokenizer is of a kind that is not implemented.
    """
    import tokenizers
    from tokenizers import decoders, models

    kind = metadata.get("tokenizer.ggml.model")
    cut = metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise ValueError(f"tokenizer.ggml.model is {kind!r}; known: 'gpt2' (byte-level BPE)")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=cut == "llama-bpe",
        )
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(cut)
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type", ())
    tokenizer.add_special_tokens(
        [
            tokenizers.AddedToken(token, special=True, normalized=False)
            for token, type_ in zip(tokens, types, strict=False)
            if type_ == _GGUF_CONTROL
        ]
    )
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    wanted = metadata.get("tokenizer.ggml.add_bos_token", cut == "llama-bpe")
    ends = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return ChatTokenizer(
        tokenizer,
        bos=bos if wanted else None,
        eos=[end for end in ends if end is not None],
        chat_template=metadata.get("tokenizer.chat_template"),
        template_bos=None if bos is None else tokens[bos],
    )


def _pre_tokenizer(cut: str | None) -> "tokenizers.pre_tokenizers.PreTokenizer":
    import tokenizers
    from tokenizers import pre_tokenizers

    if cut == "smollm":  # digits one by one, then as GPT-2
        first = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if cut == "llama-bpe":
        first = pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_PATTERN), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([first, last])
    raise ValueError(f"tokenizer.ggml.pre is {cut!r}; known: 'llama-bpe', 'smollm'")


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def _content(token: str | dict | None) -> str | None:
    """A special token's text; some files hold it with settings."""
    return token["content"] if isinstance(token, dict) else token
