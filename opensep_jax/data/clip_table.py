"""What examples are drawn by: names and prompts of all clips, as arrays."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClipTable:
    """Names and prompts of clips, a few dozen bytes per clip.

    Attributes:
        names: all names, sorted.
        kinds: all kinds of wording, sorted.
        samples_I: length of each clip.
        first_source_I: int64 [I + 1], where the sources of each clip begin in `source_J`.
        source_J: sources of the clips, one after the other.
        name_R: name of each distinct source, an index into `names`.
        first_prompt_RK: int64 [R * K + 1], where the prompts of each source and kind begin.
        prompt_M: text ids.
    """

    names: list[str]
    kinds: list[str]
    samples_I: np.ndarray
    first_source_I: np.ndarray
    source_J: np.ndarray
    name_R: np.ndarray
    first_prompt_RK: np.ndarray
    prompt_M: np.ndarray

    def __len__(self) -> int:
        return len(self.samples_I)

    def sources(self, clip: int) -> np.ndarray:
        """Sources of a clip."""
        return self.source_J[self.first_source_I[clip] : self.first_source_I[clip + 1]]

    def name_ids(self, clip: int) -> np.ndarray:
        """Names of a clip's sources, as indices into `names`."""
        return self.name_R[self.sources(clip)]

    def text_ids(self, source: int, kind: str) -> np.ndarray:
        """Prompts of a source in one kind of wording; may be empty."""
        if kind not in self.kinds:
            return self.prompt_M[:0]
        place = source * len(self.kinds) + self.kinds.index(kind)
        return self.prompt_M[self.first_prompt_RK[place] : self.first_prompt_RK[place + 1]]


def make_table(
    clips: Iterable[tuple[int, Sequence[int]]],
    sources: Sequence[tuple[str, Mapping[str, Sequence[int]]]],
) -> ClipTable:
    """Packs clips (length, numbers of their sources) and sources (name, text ids by kind)."""
    names = sorted({name for name, _ in sources})
    kinds = sorted({kind for _, prompts in sources for kind in prompts})
    name_id = {name: i for i, name in enumerate(names)}
    ids = [prompts.get(kind, ()) for _, prompts in sources for kind in kinds]
    samples, numbers = [], []
    for length, own in clips:
        samples.append(length)
        numbers.append(own)
    return ClipTable(
        names, kinds, np.array(samples, np.int32), _starts(numbers),
        np.fromiter(itertools.chain.from_iterable(numbers), np.int32),
        np.array([name_id[name] for name, _ in sources], np.int32), _starts(ids),
        np.fromiter(itertools.chain.from_iterable(ids), np.int32),
    )  # fmt: skip


def _starts(lists: Sequence[Sequence]) -> np.ndarray:
    """Where each list begins when all are laid side by side, and where the last one ends."""
    return np.cumsum([0, *map(len, lists)], dtype=np.int64)
