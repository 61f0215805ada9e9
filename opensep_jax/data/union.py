"""Several prepared data sets as one."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from opensep_jax.data.clip_table import ClipTable, make_table
from opensep_jax.data.records import ClipEntry, Entries, PreparedDataset, RecordError
from opensep_jax.data.text_table import TextTable, unite


def open_prepared(
    folders: str, split: str, text: TextTable | None = None
) -> "PreparedDataset | PreparedUnion":
    """Opens one prepared folder, or several as one.

    Args:
        folders: a path or URL, or several separated by commas.
        split: of each; or one per folder, separated by commas; or several of one folder.
        text: their table of prompts, where another split has read it already.

    Raises:
        RecordError: one cannot be used, or they do not fit together.
    """
    names = [name.strip() for name in folders.split(",") if name.strip()]
    splits = [name.strip() for name in split.split(",")]
    if len(names) == 1:
        names *= len(splits)
    if len(splits) not in (1, len(names)):
        raise RecordError(f"{len(splits)} splits ({split}) for {len(names)} folders ({folders})")
    splits *= len(names) // len(splits)
    if len(names) == 1:
        return PreparedDataset(names[0], splits[0], text)
    sets = [PreparedDataset(name, own) for name, own in zip(names, splits, strict=True)]
    return PreparedUnion(sets, text)


class PreparedUnion:
    """Clips of several prepared data sets, one after the other, with one table of prompts.

    It has the attributes and methods of `PreparedDataset`.

    Attributes:
        parts: first clip of each data set, and behind its last.
    """

    def __init__(self, sets: Sequence[PreparedDataset], text: TextTable | None = None):
        """Takes data sets of one rate and text encoder.

        Raises:
            RecordError: they differ there; the message says in what.
        """
        self._sets = list(sets)
        self.folder = ", ".join(s.folder for s in sets)
        self.split = ", ".join(dict.fromkeys(s.split for s in sets))
        for what in ("sample_rate_hz", ("text_encoder", "id")):
            found = {s.folder: _get(s.info, what) for s in sets}
            if len(set(found.values())) > 1:
                told = "; ".join(f"{folder}: {value}" for folder, value in found.items())
                raise RecordError(f"data sets of different {_named(what)} do not mix: {told}")
        last = np.cumsum([len(s) for s in sets]).tolist()
        self.parts = list(zip([0, *last], last, strict=False))
        self.info = _join_info(sets)
        if text is not None:
            self.text = text
        keys = sorted({key for s in sets for key in s.keys})
        self.table = _join_tables(sets, {key: i for i, key in enumerate(keys)})

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "text"}

    def __len__(self) -> int:
        return self.parts[-1][1]

    @property
    def sample_rate_hz(self) -> int:
        """Rate of all clips."""
        return self.info["sample_rate_hz"]

    @property
    def contents(self) -> dict[str, str]:
        """A hash over sounds, names and prompts of all clips, by data set and split."""
        return {split: known["sha256"] for split, known in self.info["splits"].items()}

    @property
    def clips(self) -> Entries:
        """Entries of all clips, read when they are asked for."""
        return Entries(self)

    @functools.cached_property
    def text(self) -> TextTable:
        """The table of prompts."""
        return unite([s.text for s in self._sets])

    def audio(self, index: int) -> np.ndarray:
        """PCM16 samples of a clip, int16 [T]."""
        part, row = self._place(index)
        return part.audio(row)

    def entry(self, index: int) -> ClipEntry:
        """What is known of a clip."""
        part, row = self._place(index)
        return part.entry(row)

    def _place(self, index: int) -> tuple[PreparedDataset, int]:
        for part, (first, last) in zip(self._sets, self.parts, strict=True):
            if first <= index < last:
                return part, index - first
        raise IndexError(f"clip {index} of {len(self)}")


def _join_info(sets: Sequence[PreparedDataset]) -> dict:
    """What `dataset.json` would say of all."""
    scenes: dict[str, list[str]] = {}
    for name, labels in ((n, own) for s in sets for n, own in s.info["scenes"].items()):
        scenes.setdefault(name, []).extend(labels)
    first = sets[0].info
    return {
        **{key: first[key] for key in ("schema", "sample_rate_hz", "text_encoder", "text")},
        "families": join_families([s.info["families"] for s in sets]),
        "scenes": scenes,
        "splits": {f"{i}_{s.split}": s.info["splits"][s.split] for i, s in enumerate(sets)},
    }


def join_families(sets: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Families of several data sets as those of one: what meets in none of them never meets.

    Args:
        sets: labels by the name of their family, of each data set.

    Returns:
        Likewise; families of one name or with a label in common are one, by the first name.
    """
    joint = DisjointSet()
    for name, labels in ((n, own) for families in sets for n, own in families.items()):
        for member in (("family", name), *(("label", label) for label in labels)):
            joint.add(member)
            joint.merge(("family", name), member)
    names: dict[tuple[str, str], str] = {}
    found: dict[str, list[str]] = {}
    for member in joint:  # in the order in which they came: a family before its labels
        kind, word = member
        family = found.setdefault(names.setdefault(joint[member], word), [])
        if kind == "label":
            family.append(word)
    return found


def _join_tables(sets: Sequence[PreparedDataset], ids: dict[str, int]) -> ClipTable:
    """One table of all clips, with the text ids of the joint table."""
    clips, sources = [], []
    for part in sets:
        table, own = part.table, np.array([ids[key] for key in part.keys], np.int32)
        offset = len(sources)
        for source in range(len(table.name_R)):
            prompts = {kind: own[table.text_ids(source, kind)] for kind in table.kinds}
            sources.append((table.names[table.name_R[source]], prompts))
        for clip in range(len(part)):
            clips.append((table.samples_I[clip], (table.sources(clip) + offset).tolist()))
    return make_table(clips, sources)


def _get(info: dict, what: str | tuple[str, str]) -> object:
    return info[what] if isinstance(what, str) else info[what[0]][what[1]]


def _named(what: str | tuple[str, str]) -> str:
    return what if isinstance(what, str) else " ".join(what)
