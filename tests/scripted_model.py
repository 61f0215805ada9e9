"""A language model and a text encoder without networks, for tests of what uses them."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from opensep_jax.text.bank import Bank, load_sounds
from opensep_jax.text.generate import Grammar

END = 0  # the id of a newline, and of the end
_CHAT = "{role}: {content}\n"


class ScriptedModel:
    """Writes what a test tells it to, or follows a grammar; its tokens are characters.

    The interface is that of `text.generate.LanguageModel`.

    Attributes:
        asked: suffixes as text, in the order in which they came, one list per call.
    """

    id = "scripted"
    bos = None

    def __init__(
        self,
        answer: Callable[[str], str] = lambda suffix: "",
        *,
        chat_template: str | None = None,
        max_tokens: int = 4096,
    ):
        self.chat_template, self.max_tokens = chat_template, max_tokens
        self.eos = (1,)
        self.asked: list[list[str]] = []
        self._answer = answer

    def encode(self, text: str, special: bool = False) -> list[int]:
        return [END if character == "\n" else ord(character) + 2 for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("\n" if i == END else chr(i - 2) for i in ids)

    def render_chat(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        return "".join(_CHAT.format(**message) for message in messages) + "assistant: "

    def generate(
        self,
        prefix: Sequence[int],
        suffixes: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[int],
        grammars: Sequence[Grammar] | None = None,
    ) -> list[list[int]]:
        if not suffixes:
            return []
        texts = [self.decode(suffix) for suffix in suffixes]
        self.asked.append(texts)
        written = (
            [follow(grammar) for grammar in grammars]
            if grammars
            else [self.encode(self._answer(text)) for text in texts]
        )
        return [[i for i in ids[:max_new_tokens] if i not in stop] for ids in written]


def follow(grammar: Grammar, choice: int = 0) -> list[int]:
    """An answer that a grammar allows: the first choice in each state, or another one."""
    ids, state = [], 0
    while state >= 0:
        allowed = [slot for slot, token in enumerate(grammar.tokens[state]) if token >= 0]
        slot = allowed[min(choice, len(allowed) - 1)]
        ids.append(int(grammar.tokens[state, slot]))
        state = int(grammar.next[state, slot])
    return ids


class LetterEncoder:
    """A text encoder whose states are letters: like spelling is near."""

    id = "letters"

    def encode(self, prompts: list[str]) -> list[np.ndarray]:
        alphabet = "abcdefghijklmnopqrstuvwxyz"
        return [np.array([[c == a for a in alphabet] for c in p], np.float32) for p in prompts]


@functools.cache
def letter_bank() -> Bank:
    return Bank(LetterEncoder(), load_sounds())
