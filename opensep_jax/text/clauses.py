"""Captions to clauses: who does what, by word lists. Source: ours."""

import dataclasses
import re

from opensep_jax.text.words import is_participle, lemma, verb_base, words

_TOKEN = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[^\w\s]")
_STOPS = set(",;.:!?()[]/|，。、；：！？")
_DETERMINERS = {"a", "an", "the", "some", "several", "multiple", "many", "few", "various"}
_AUXILIARIES = {"is", "are", "was", "were", "be", "been", "being", "has", "have", "had"}
_ADJECTIVES = {"shut", "open", "idle", "slow", "clear", "clean", "back"}  # also verbs
_GOES_ON = {"and", ",", "then", "before", "while", "as", "until", "but"}  # with the same subject


@dataclasses.dataclass
class Clause:
    """What one clause says, without small words.

    Attributes:
        joint: what stands before it: "and", "," or a word like "then".
        determined: it begins with an article, a number or the like.
        nouns: words before the verb.
        verb: in the caption's form; None where no verb carries meaning.
        rest: words behind the verb.
        finite: there is a verb other than a bare participle, if only one like "occurs".
        handling: that verb is one like "uses" or "plays", whose object is what sounds.
        pronoun: its subject is one like "it".
        of: the sound belongs to what is behind it, as in "rattling of a train".
        sound: place of that sound in `nouns`, if it is a noun.
    """

    joint: str
    determined: bool = False
    nouns: list[str] = dataclasses.field(default_factory=list)
    verb: str | None = None
    rest: list[str] = dataclasses.field(default_factory=list)
    finite: bool = False
    handling: bool = False
    pronoun: bool = False
    of: bool = False
    sound: int | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing that carries meaning is left."""
        return not (self.nouns or self.verb or self.rest)


def tokens(text: str) -> list[str]:
    """Lower-case words and punctuation marks of any script."""
    return _TOKEN.findall(text.lower())


def is_word(token: str) -> bool:
    """Whether a token is a word and no punctuation mark."""
    return token[0].isalnum()


def content(text: str) -> frozenset[str]:
    """Lemmas of the words of a text that carry meaning."""
    small = words("fillers") | words("prepositions") | words("numbers") | {"and"}
    return frozenset(lemma(w) for w in tokens(text) if is_word(w) and w not in small)


def clauses(caption: str) -> list[Clause]:
    """The clauses of a caption that say anything, in order."""
    found: list[Clause] = []
    for joint, parts in _split(caption):
        subjects = [earlier for earlier in found if earlier.nouns] or found
        clause = _analyse(joint, parts, after=subjects[-1] if subjects else None)
        alone = bool(clause.nouns) and not (clause.verb or clause.finite)
        on_air = joint == "over" and alone and words("devices").issuperset(clause.nouns)
        if not clause.empty and not on_air:  # "a man speaks over a radio"
            found.append(clause)
    return found


def _split(caption: str) -> list[tuple[str, list[str]]]:
    """Words between joints, and the joint before them; the strongest of several in a row."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    breaks, music = words("breaks"), words("music")
    every = tokens(caption)
    for i, token in enumerate(every):
        following = every[i + 1] if i + 1 < len(every) else ""
        if token == "as" and following in ("well", "if"):
            continue
        if token in ("and", "or", "&", "+") or token in _STOPS:
            joint = "," if token in _STOPS else "and"
        elif token in breaks or (token == "to" and following in music):
            joint = token
        elif is_word(token):
            parts[-1][1].append(token)
            continue
        else:
            continue
        if parts[-1][1]:
            parts.append((joint, []))
        elif parts[-1][0] in ("", ",", "and") and joint != ",":
            parts[-1] = (joint, [])
    return [part for part in parts if part[1]]


def _analyse(joint: str, parts: list[str], after: Clause | None) -> Clause:
    """What the words of one clause say; `after` is the last one before it that has a subject."""
    clause = Clause(joint, determined=parts[0] in _DETERMINERS | words("numbers"))
    for i, word in enumerate(parts):
        before = parts[i - 1] if i else ""
        following = parts[i + 1] if i + 1 < len(parts) else ""
        if word == "to" and verb_base(following):
            continue  # "begins to sizzle"
        if word == "of" or word in words("prepositions"):
            if _ends_at(clause, word, parts[i + 1 :]):
                break
        elif word in _AUXILIARIES:
            clause.finite = True
        elif word in words("pronouns"):
            clause.pronoun = True
        elif _is_counter(word, following):
            clause.determined = True
            _place(clause, word)
        elif clause.nouns and _is_light(word, clause):
            clause.finite = True
        elif _is_small(word, before):
            clause.determined |= not (clause.nouns or clause.verb or clause.rest)
        elif _is_light(word, clause):
            clause.finite = True
        elif _is_verb(word, before, following, clause, after):
            clause.verb = word
            clause.finite |= not is_participle(word) or before in _AUXILIARIES
        else:
            _place(clause, word)
    return clause


def _place(clause: Clause, word: str) -> None:
    (clause.rest if clause.verb or clause.handling else clause.nouns).append(word)


def _is_counter(word: str, following: str) -> bool:
    return word in words("numbers") and following not in ("", "times", "seconds", "minutes")


def _is_small(word: str, before: str) -> bool:
    """Whether a word says nothing about what sounds."""
    if word in ("noise", "noises"):  # alone it is as good as "sound"
        return not before or before in words("fillers") or bool(verb_base(before, "light_verbs"))
    adverb = word.endswith("ly") and len(word) > 4 and word not in words("adverbs_not")
    small = word in words("fillers") or word in words("places") or word in words("numbers")
    return adverb or small


def _is_light(word: str, clause: Clause) -> bool:
    """Whether a word is a verb like "occurs", which only says that something is heard."""
    base = verb_base(word, "light_verbs")
    clause.handling |= base in ("use", "play", "operate", "perform") and bool(clause.nouns)
    return base is not None


def _is_verb(word: str, before: str, following: str, clause: Clause, after: Clause | None) -> bool:
    """Whether a word is what the clause's subject does."""
    if clause.verb or clause.handling:
        return False
    if is_participle(word) or (clause.pronoun and not clause.nouns):
        return True
    if not verb_base(word):
        return False
    if before in _AUXILIARIES or before == "to":
        return True
    if following in _AUXILIARIES or (following not in _ADJECTIVES and _may_be_verb(following)):
        return False  # "air brakes hiss"
    if nouns := [noun for noun in clause.nouns if noun not in words("numbers")]:
        lone_before = after is not None and not (after.verb or after.finite)
        plural = nouns[-1].endswith("s") or nouns[-1] in words("animate")
        plural |= clause.joint == "and" and lone_before  # "dirt and gravel pour"
        return word.endswith(("s", "ed")) or (plural and verb_base(word) == word)
    # "... and laughs": the subject is that of the clause before.
    if after is None or not after.finite or clause.joint not in _GOES_ON:
        return False
    agrees = word.endswith(("s", "ed")) or (after.verb and verb_base(after.verb) == after.verb)
    return bool(agrees) and not clause.determined and not clause.nouns


def _may_be_verb(word: str) -> bool:
    known = verb_base(word) or verb_base(word, "light_verbs")
    return bool(known) and not word.endswith("ing")


def _ends_at(clause: Clause, preposition: str, behind: list[str]) -> bool:
    """Whether a preposition begins what only says where or how."""
    sounding = (clause.verb or _last_may_sound(clause)) and not clause.rest
    if sounding and (preposition == "of" or (preposition == "from" and not _is_full(clause))):
        clause.of = True
        clause.sound = None if clause.verb else len(clause.nouns) - 1
        return False
    if preposition == "of":
        if clause.nouns and not clause.verb:
            clause.nouns.append(preposition)  # "crowd of people"
        return False
    played = clause.rest if clause.rest else clause.nouns
    if preposition == "on" and not clause.verb and played and played[-1] in words("music"):
        on_air = bool(words("devices") & set(behind))
        if not on_air:
            played.clear()  # "a song is played on a piano": the piano
        return on_air
    contents = len(clause.nouns) + bool(clause.verb) + len(clause.rest) + clause.pronoun
    return contents >= 2 or (contents == 1 and clause.finite and not clause.verb)


def _last_may_sound(clause: Clause) -> bool:
    """Whether the last noun is a sound, as in "chirps of birds"."""
    return bool(clause.nouns) and verb_base(clause.nouns[-1]) is not None


def _is_full(clause: Clause) -> bool:
    return bool(clause.verb and clause.nouns)
