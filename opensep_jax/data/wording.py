"""Clips to named sources with prompts: by their label, their caption, or what a captioner hears."""

import dataclasses
from collections.abc import Iterator, Sequence

from opensep_jax.data.datasets import Clip
from opensep_jax.data.ledger import Ledger
from opensep_jax.data.shards import SourceEntry, prompt_key
from opensep_jax.text.parse import Parser, check_caption
from opensep_jax.text.wordings import wordings

WORDS = ("label", "caption", "captioner")
_CHUNK = 64  # captions between two writes
_KNOWN = 100_000  # answers that stay in memory for later shards


@dataclasses.dataclass(frozen=True)
class Told:
    """What is said of a clip.

    Attributes:
        sources: name, and the sentence about this source alone (may be empty).
        captions: sentences about all of it.
    """

    sources: tuple[tuple[str, str], ...]
    captions: tuple[str, ...]


def questions(clips: Sequence[Clip], words: str, heard: Sequence[str]) -> list[str]:
    """What a parser must be asked for these clips, distinct, in order.

    Args:
        clips: one for each record.
        words: a name of `WORDS`.
        heard: for `captioner`, what it said of each record.

    Returns:
        Names to describe (`label`), else captions to parse.
    """
    if words == "label":
        asked = [source.name for clip in clips for source in clip.sources]
    elif words == "caption":
        asked = [clip.captions[0] for clip in clips if clip.captions]
    else:
        asked = list(heard)
    return [text for text in dict.fromkeys(asked) if text]


def answer(
    parser: Parser, asked: Sequence[str], words: str, answers: Ledger, known: dict[str, object]
) -> Iterator[int]:
    """Asks a parser what the ledger does not have yet.

    Args:
        parser: of captions.
        asked: `questions`.
        words: a name of `WORDS`.
        answers: gets for each question a list of `[name, prompt]`, or a text: why there is none.
        known: answers for other shards; is added to.

    Yields:
        How many questions were answered.
    """
    if len(known) < _KNOWN:
        known |= {text: answers[text] for text in asked if text in answers}
    missing = [text for text in asked if text not in answers]
    answers.add({text: known[text] for text in missing if text in known})
    rest = [text for text in missing if text not in known]
    yield len(missing) - len(rest)
    for start in range(0, len(rest), _CHUNK):
        chunk = rest[start : start + _CHUNK]
        if words == "label":
            found = {s.name: [[s.name, s.prompt]] for s in parser.describe(chunk)}
        else:
            found = _parse(parser, chunk)
        answers.add(found)
        if len(known) < _KNOWN:
            known |= found
        yield len(chunk)


def tell(clip: Clip, words: str, caption: str, answers: Ledger | None) -> Told | str:
    """Sources and captions of a clip, or why it has none.

    Args:
        clip: of the data set.
        words: a name of `WORDS`.
        caption: for `captioner`, what it said.
        answers: of `answer`; None if names are not described.
    """
    if words == "label":
        if not clip.sources:
            return "it has no label; --words captioner needs none"
        return Told(tuple((s.name, s.caption) for s in clip.sources), clip.captions)
    captions = clip.captions if words == "caption" else (caption,) if caption else ()
    if not captions:
        return "it has no caption" if words == "caption" else "the captioner heard nothing"
    parsed = answers[captions[0]]
    if isinstance(parsed, str):
        return parsed
    names = dict.fromkeys(name for name, _ in parsed)
    alone = captions[0] if len(names) == 1 else ""
    return Told(tuple((name, alone) for name in names), captions)


def prompts_of(told: Told, words: str, answers: Ledger | None) -> list[dict[str, list[str]]]:
    """Prompts by kind of wording of each source of a clip.

    A clip of one source has the captions of the clip; in another a source is only a part of what
    they say, and its name stands for it.
    """
    enriched: dict[str, str] = {}
    if answers is not None:
        asked = [name for name, _ in told.sources] if words == "label" else told.captions[:1]
        enriched = {name: prompt for text in asked for name, prompt in answers[text]}
    found = []
    for name, caption in told.sources:
        kinds = wordings(name, caption)
        if caption and len(told.captions) > 1:
            kinds["caption"] = list(told.captions)
        if enriched.get(name, name) != name:
            kinds["description"] = list(
                dict.fromkeys([*kinds.get("description", ()), enriched[name]])
            )
        found.append(kinds)
    return found


def source_entries(
    told: Told, kinds: Sequence[dict[str, list[str]]], encoder_id: str
) -> list[SourceEntry]:
    """Sources as a record has them: their prompts by key."""
    return [
        SourceEntry(
            name, {k: [prompt_key(text, encoder_id) for text in texts] for k, texts in own.items()}
        )
        for (name, _), own in zip(told.sources, kinds, strict=True)
    ]


def _parse(parser: Parser, captions: Sequence[str]) -> dict[str, list | str]:
    found: dict[str, list | str] = {}
    for caption in captions:
        try:
            check_caption(caption)
        except ValueError as error:
            found[caption] = str(error)
    for parse in parser.parse([caption for caption in captions if caption not in found]):
        found[parse.caption] = [[source.name, source.prompt] for source in parse.sources]
    return {caption: found[caption] for caption in captions}
