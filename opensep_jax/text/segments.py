"""Captions to the sources that they name, by rule: the last resort, and what a model must cover.

A caption is cut into clauses; each names a source, but for those that share a subject ("a man
speaks and laughs") or a verb ("a man and a woman speak"). Source: ours.
"""

import dataclasses
from collections.abc import Sequence

from opensep_jax.text.clauses import Clause, clauses, content, is_word, tokens
from opensep_jax.text.words import is_participle, lemma, participle, verb_base, words

MAX_SOURCES = 16  # of a caption; later ones are left out
MAX_WORDS = 6  # of a name


@dataclasses.dataclass(frozen=True)
class Segment:
    """A source as the caption words it.

    Attributes:
        words: of its name, in order.
        verbs: places in `words` where the rule has put an -ing form, with the caption's own word.
    """

    words: tuple[str, ...]
    verbs: tuple[tuple[int, str], ...] = ()

    @property
    def name(self) -> str:
        """The words, joined."""
        return " ".join(self.words)


def segments(caption: str) -> list[Segment]:
    """Sources that a caption names.

    Args:
        caption: any text with at least one letter or digit.

    Returns:
        1 to `MAX_SOURCES` segments in the caption's order, none twice.

    Raises:
        ValueError: the caption has no letter or digit.
    """
    every = [token for token in tokens(caption) if is_word(token)]
    if not every:
        raise ValueError(f"caption {caption[:60]!r} has no words")
    found = _without_repeats(_resolve(clauses(caption)))
    return found[:MAX_SOURCES] or [Segment(tuple(every[:MAX_WORDS]))]


def _resolve(parts: list[Clause]) -> list[Segment]:
    """A segment per source, with subjects and verbs that clauses share."""
    found: list[Segment] = []
    subject: list[str] = []  # of the last clause that had one
    doing: str | None = None  # what it did
    merged: list[str] = []  # nouns that wait for the next clause
    for i, clause in enumerate(parts):
        following = parts[i + 1 :]
        if clause.nouns:
            clause.nouns = merged + clause.nouns
            merged = []
            if _is_one_thing(clause, following):
                merged = [*clause.nouns, "and"]
                continue
            verb = clause.verb or _borrowed(clause, following, doing)
            found.append(_named(clause, verb))
            subject, doing = clause.nouns, verb
        elif clause.of and clause.verb and found and _leads_to(parts[i - 1], clause):
            found[-1] = _segment(clause.rest, [parts[i - 1].verb, "and", clause.verb])
        elif clause.verb and _shares_subject(clause, parts[i - 1] if i else None, subject):
            _continue(found, subject, clause)
        else:
            found.append(_named(clause, clause.verb))
            subject = subject if clause.finite else []
    return found


def _named(clause: Clause, verb: str | None) -> Segment:
    """The segment of a clause by itself."""
    animate = _is_animate(clause.nouns)
    if clause.handling and clause.rest and animate:
        return _segment(clause.rest)  # "a man uses a drill": the drill
    if clause.handling and clause.rest and clause.rest[-1] in words("music"):
        return _segment(clause.nouns)  # "a tuba plays a melody": the tuba
    if clause.handling and animate and not clause.rest:
        return _segment([*clause.nouns, "playing"])
    if clause.of and verb:  # "rattling of a train": train rattling
        return _segment(clause.rest + clause.nouns, [verb])
    if clause.sound is not None and len(clause.nouns) > clause.sound + 1:  # "chirps of birds"
        owner = clause.nouns[: clause.sound] + clause.nouns[clause.sound + 1 :]
        return _segment(owner, [clause.nouns[clause.sound]])
    if verb and not clause.nouns:
        return _segment([], [verb], clause.rest)
    return _segment(clause.nouns, [verb] if verb else [], clause.rest)


def _segment(
    before: Sequence[str], verbs: Sequence[str] = (), behind: Sequence[str] = ()
) -> Segment:
    """Words with the verbs in their -ing form, at most `MAX_WORDS`, the nouns nearest the verb."""
    room = MAX_WORDS - len(verbs)
    nouns = list(before)[-room:]
    tail = list(behind)[: max(0, room - len(nouns))]
    spelled, changed = [], []
    for place, verb in enumerate(verbs, len(nouns)):
        base = verb_base(verb)
        past = verb.endswith("ed") and verb != base
        if base and not past and not is_participle(verb):
            changed.append((place, verb))
            verb = participle(base)
        spelled.append(verb)
    return Segment((*nouns, *spelled, *tail), tuple(changed))


def _is_animate(nouns: list[str]) -> bool:
    return bool(nouns) and nouns[-1] in words("animate")


def _is_vocal(verb: str) -> bool:
    return verb_base(verb, "vocal") is not None


def _is_one_thing(clause: Clause, following: list[Clause]) -> bool:
    """Whether bare nouns share the next clause's verb, as in "dirt and gravel pour"."""
    if clause.verb or clause.finite or clause.determined or clause.rest or not following:
        return False
    after = following[0]
    bare = bool(after.nouns) and not after.determined and len(clause.nouns) + len(after.nouns) < 4
    things = not words("animate") & {*clause.nouns, *after.nouns}
    apart = words("alone") & {*clause.nouns, *after.nouns}
    return after.joint == "and" and bare and things and not apart and bool(after.verb)


def _borrowed(clause: Clause, following: list[Clause], doing: str | None) -> str | None:
    """The verb that a lone being shares: that of the next clause, else of the one before."""
    if not _is_animate(clause.nouns) or clause.finite or clause.rest:
        return None
    for after in following:
        if after.joint not in ("and", ",") or not after.nouns:
            break
        if after.verb:
            return after.verb if _is_animate(after.nouns) else None
        if not _is_animate(after.nouns):
            break
    return doing if doing and _is_vocal(doing) else None


def _leads_to(before: Clause, clause: Clause) -> bool:
    """Whether both are sounds of one thing, as in "hissing and rattling of a train"."""
    alone = bool(before.verb) and not before.nouns and not before.rest and not before.finite
    return clause.joint == "and" and alone


def _shares_subject(clause: Clause, before: Clause | None, subject: list[str]) -> bool:
    """Whether a clause that begins with a verb goes on with the last subject."""
    if not subject or before is None or clause.determined:
        return False
    if clause.finite:
        return not is_participle(clause.verb)  # "rustling occurs" is a sound of its own
    if clause.joint == "while":
        return True
    if _is_animate(subject) and _is_vocal(clause.verb):
        return clause.joint in ("and", "then", "before", "after")
    alike = bool(before.verb) and is_participle(before.verb) and not clause.rest
    return clause.joint in ("and", "then") and alike


def _continue(found: list[Segment], subject: list[str], clause: Clause) -> None:
    """Adds what the last subject does next: a source of its own, or more of the same sound."""
    rest = [word for word in clause.rest if not verb_base(word)]  # "runs idle"
    passive = clause.verb.endswith("ed")
    if not rest and (passive or verb_base(clause.verb, "ignorable_verbs")):
        return
    if _is_animate(subject):
        heard = _is_vocal(clause.verb)
        found.append(_segment(subject if heard else [], [clause.verb], rest))
    elif rest:
        found.append(_segment([], [clause.verb], rest))
    elif len(found[-1].words) + 2 <= MAX_WORDS and not clause.pronoun:
        more = _segment([], [clause.verb])
        if content(more.name) <= content(found[-1].name):
            return
        places = found[-1].verbs + tuple((len(found[-1].words) + 1, w) for _, w in more.verbs)
        found[-1] = Segment((*found[-1].words, "and", *more.words), places)


def _without_repeats(found: list[Segment]) -> list[Segment]:
    """Each source once, unless the caption says that it is another one."""
    kept: list[Segment] = []
    seen: set[frozenset[str]] = set()
    for segment in found:
        key = content(segment.name) or frozenset(lemma(word) for word in segment.words)
        bare_verb = len(key) == 1 and is_participle(segment.words[-1])  # "then more crying"
        if key not in seen and not (bare_verb and any(key < other for other in seen)):
            kept.append(segment)
        seen.add(key)
    return kept
