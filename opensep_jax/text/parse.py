"""Captions to sources with acoustic properties.

The names come from the first step whose result holds: the model writes freely and a strict check
accepts it; it chooses spellings within a grammar of the caption's own words; the rule alone. So no
answer of a model, however bad, breaks a parse. Source: ours.
"""

import dataclasses
import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from opensep_jax.checkpoint.weights import cache_folder
from opensep_jax.text.bank import Bank, load_sounds
from opensep_jax.text.cache import Cache, digest
from opensep_jax.text.clauses import content
from opensep_jax.text.embed import load_text_encoder
from opensep_jax.text.generate import BATCH, Grammar, LanguageModel, load_language_model
from opensep_jax.text.grammar import grammar, longest
from opensep_jax.text.prompts import SHOTS, Encoded, Task, encode_task, load_tasks
from opensep_jax.text.properties import read_properties
from opensep_jax.text.segments import MAX_WORDS, Segment, segments
from opensep_jax.text.source import Source, prompt_of

logger = logging.getLogger("opensep_jax")

STEPS = ("free", "constrained", "rule")
PROPERTIES = ("bank", "llm")
_LIMITS = (32, 64, 128, 256, 512, 1024)  # lengths of answers that are compiled for, tokens
_SPARE_TOKENS = 8  # a list of sources is hardly longer than its caption
_PROPERTY_TOKENS = 256
_LEAST_TOLD = 0.7  # overlap of a free name with the rule's: "bird" does not tell "bird tweeting"
_CODE = ("bank", "clauses", "grammar", "parse", "properties", "segments", "source", "words")


@dataclasses.dataclass(frozen=True)
class Parse:
    """A parsed caption.

    Attributes:
        caption: as given.
        sources: 1 to `segments.MAX_SOURCES`, in the caption's order, none twice.
        step: which of `STEPS` gave the names.
    """

    caption: str
    sources: tuple[Source, ...]
    step: str


class Parser:
    """Finds the sources in captions.

    Attributes:
        id: changes with everything that a parse depends on besides the caption.
        steps: how many captions each step has parsed, cached ones included.
        bank: of properties.
    """

    def __init__(
        self,
        model: LanguageModel | None,
        bank: Bank,
        tasks: dict[str, Task],
        *,
        style: str = "completion",
        properties: str = "bank",
        cache: Cache | None = None,
    ):
        """Takes what `load_parser` has read.

        Args:
            model: writes names and properties; None leaves both to the rule and the bank.
            bank: of properties.
            tasks: few-shot prompts `sources` and `properties`.
            style: of the prompts, see `prompts.encode_task`.
            properties: `bank`, or `llm`: the model where its answer holds, else the bank.
            cache: of earlier parses.
        """
        if properties not in PROPERTIES:
            raise ValueError(f"properties={properties!r} is not known, unlike {PROPERTIES}")
        if properties == "llm" and model is None:
            raise ValueError("properties='llm' needs a language model")
        self.bank, self._model, self._cache = bank, model, cache
        self._encoded = {n: encode_task(t, model, style) for n, t in tasks.items()} if model else {}
        self._asks = properties == "llm"
        depends = [{n: dataclasses.astuple(t) for n, t in tasks.items()} if model else None]
        model_id = model.id if model else "rule"
        settings = digest(model_id, depends, style, properties, bank.id, _code_digest())
        self.id = f"{model_id}-{settings[:16]}"
        self.steps = dict.fromkeys(STEPS, 0)

    def parse(self, captions: Sequence[str]) -> list[Parse]:
        """Finds the sources that each caption names.

        Args:
            captions: texts of any length and language.

        Raises:
            ValueError: a caption has no word, or is not valid Unicode; the message quotes it.
        """
        for caption in captions:
            check_caption(caption)
        known = {c: self._cached(c) for c in dict.fromkeys(captions)}
        missing = [caption for caption, parse in known.items() if parse is None]
        named = self._name(missing)
        sources = iter(self.describe([name for names, _ in named for name in names]))
        for caption, (names, step) in zip(missing, named, strict=True):
            known[caption] = Parse(caption, tuple(next(sources) for _ in names), step)
            self._keep(known[caption])
        for caption in captions:
            self.steps[known[caption].step] += 1
        return [known[caption] for caption in captions]

    def describe(self, names: Sequence[str]) -> list[Source]:
        """Sources of the given names, with properties and prompts."""
        distinct = list(dict.fromkeys(names))
        found = dict(zip(distinct, self.bank.properties(distinct), strict=True))
        if self._asks:
            for name, written in zip(distinct, self._ask(distinct), strict=True):
                found[name] = written or found[name]
        return [Source(name, found[name], prompt_of(name, found[name])) for name in names]

    def free(self, captions: Sequence[str]) -> list[list[str]]:
        """Names that the model writes for each caption by itself, whatever they are."""
        task = self._encoded["sources"]
        suffixes = [task.suffix(self._model, _one_line(caption)) for caption in captions]
        needed = [len(suffix) + _SPARE_TOKENS for suffix in suffixes]
        return [read_names(text) for text in self._answers(task, suffixes, needed)]

    def constrained(
        self, captions: Sequence[str], ruled: Sequence[Sequence[Segment]]
    ) -> list[list[str]]:
        """Names whose spelling the model chooses; none where a caption is too long for it."""
        task, model = self._encoded["sources"], self._model
        suffixes = [task.suffix(model, _one_line(caption)) for caption in captions]
        grammars = [grammar(found, model.encode, task.ends[0]) for found in ruled]
        needed = [longest(automaton) for automaton in grammars]
        return [read_names(text) for text in self._answers(task, suffixes, needed, grammars)]

    def _name(self, captions: Sequence[str]) -> list[tuple[list[str], str]]:
        """Names of each caption's sources, and the step that gave them."""
        ruled = [segments(caption) for caption in captions]
        results = [([s.name for s in found], "rule") for found in ruled]
        if self._model is None:
            return results
        for i, names in enumerate(self.free(captions)):
            if holds(names, captions[i], ruled[i]):
                results[i] = (names, "free")
        rest = [i for i, (_, step) in enumerate(results) if step == "rule"]
        bound = self.constrained([captions[i] for i in rest], [ruled[i] for i in rest])
        for i, names in zip(rest, bound, strict=True):
            if len(names) == len(ruled[i]) and len(set(names)) == len(names):
                results[i] = (names, "constrained")
        return results

    def _ask(self, names: Sequence[str]) -> list[dict | None]:
        """Properties that the model writes for each name; None where its answer does not hold."""
        task = self._encoded["properties"]
        suffixes = [task.suffix(self._model, name) for name in names]
        texts = self._answers(task, suffixes, [_PROPERTY_TOKENS] * len(names))
        return [read_properties(text) for text in texts]

    def _answers(
        self,
        task: Encoded,
        suffixes: Sequence[list[int]],
        needed: Sequence[int],
        grammars: Sequence[Grammar] | None = None,
    ) -> list[str]:
        """What the model writes in as many tokens as needed; empty where there is no room."""
        answers = [""] * len(suffixes)
        for limit in _LIMITS:
            room = self._model.max_tokens - len(task.prefix) - limit
            rows = [
                i
                for i, tokens in enumerate(needed)
                if limit // 2 < max(tokens, _LIMITS[0]) <= limit and len(suffixes[i]) <= room
            ]
            written = self._model.generate(
                task.prefix,
                [suffixes[i] for i in rows],
                max_new_tokens=limit,
                stop=task.ends,
                grammars=[grammars[i] for i in rows] if grammars else None,
            )
            for i, ids in zip(rows, written, strict=True):
                answers[i] = self._model.decode(ids)
        return answers

    def _cached(self, caption: str) -> Parse | None:
        value = self._cache.get(digest(self.id, caption)) if self._cache else None
        try:
            sources = tuple(Source(**source) for source in value["sources"])
            return Parse(caption, sources, value["step"]) if value["step"] in STEPS else None
        except (TypeError, KeyError):
            return None

    def _keep(self, parse: Parse) -> None:
        if self._cache:
            self._cache.put(digest(self.id, parse.caption), dataclasses.asdict(parse))


def load_parser(
    language_model: str = "smollm2",
    *,
    text_encoder: str = "minilm",
    prompts: str | Path | None = None,
    shots: int | Sequence[int] = SHOTS,
    style: str = "completion",
    properties: str = "bank",
    cache: Path | None = None,
    batch: int = BATCH,
) -> Parser:
    """Loads a language model and the bank.

    Args:
        language_model: weights by name (see `checkpoint.weights.resolve`), or "none".
        text_encoder: of the bank's names, a sentence encoder.
        prompts: JSON file of few-shot prompts; default `assets/prompts.json`.
        shots: how many of its shots, or the numbers of which, from 1.
        style: of the prompts, `completion` or `chat`.
        properties: `bank`, or `llm` for models that know acoustics.
        cache: folder of earlier parses; default `parses` in `checkpoint.weights.cache_folder`.
        batch: captions that the model reads together; a single one costs as much.

    Raises:
        ValueError: something is unknown or no such file.
        WeightsError: weights could not be downloaded.
    """
    tasks = {name: task.choose(shots) for name, task in load_tasks(prompts).items()}
    model = None if language_model == "none" else load_language_model(language_model, batch=batch)
    bank = Bank(load_text_encoder(text_encoder), load_sounds())
    store = Cache(cache or cache_folder() / "parses")
    return Parser(model, bank, tasks, style=style, properties=properties, cache=store)


def check_caption(caption: str) -> None:
    """Raises ValueError where a caption cannot be parsed."""
    try:
        caption.encode()
    except UnicodeEncodeError as error:  # half a character, of bytes that are not UTF-8
        raise ValueError(f"caption {caption[:60]!r} is not valid Unicode") from error
    segments(caption)


def read_names(answer: str) -> list[str]:
    """Names from an answer like "dog barking; rain falling"."""
    line = answer.strip().partition("\n")[0]
    names = (" ".join(name.lower().split()).rstrip(".") for name in line.split(";"))
    return [name for name in names if name]


def holds(names: Sequence[str], caption: str, ruled: Sequence[Segment]) -> bool:
    """Whether names that a model wrote freely are the sources of a caption.

    Args:
        names: what it wrote.
        caption: what it was given.
        ruled: the rule's sources.

    Returns:
        True if every name is short and of the caption's words, none repeats another, and each
        source of the rule has one name that tells most of it and takes no word of another source.
    """
    said = [content(name) for name in names]
    if len(names) != len(ruled) or not all(said) or len(set(said)) < len(said):
        return False
    if any(len(name.split()) > MAX_WORDS for name in names):
        return False
    if not frozenset().union(*said) <= content(caption):
        return False
    sources = [content(source.name) for source in ruled]
    told_SN = np.array([[_told(source, name) for name in said] for source in sources])
    for row, column in zip(*linear_sum_assignment(-told_SN), strict=True):
        others = frozenset().union(*sources) - sources[row]
        if told_SN[row, column] <= _LEAST_TOLD or said[column] & others:
            return False
    return True


def _told(source: frozenset[str], name: frozenset[str]) -> float:
    """Overlap of two sets of lemmas, Dice in [0, 1]."""
    return 2 * len(source & name) / max(1, len(source) + len(name))


def _one_line(caption: str) -> str:
    """A caption as the model gets it: on one line, without the final dot."""
    return " ".join(caption.split()).rstrip(".")


def _code_digest() -> str:
    """Hash of the code and the word lists that parses depend on."""
    package = resources.files("opensep_jax")
    files = [package.joinpath("text", f"{name}.py") for name in _CODE]
    files += [package.joinpath("assets", name) for name in ("words.json", "sounds.jsonl")]
    return digest(*(file.read_text("utf-8") for file in files))
