"""Stems and residual as files, block by block: names, sample grids, clipping, sums."""

import contextlib
import dataclasses
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from opensep_jax.signal.write import WRITE_FORMATS, AudioWriter, quantize

CLIP_POLICIES = ("clamp", "rescale")
RESIDUAL, WITHOUT = "residual", "without"  # names of files that are no stems
_SLUG_CHARACTERS = 40
_STEPS = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-23}  # of the integer grids

Block = tuple[np.ndarray, np.ndarray]  # of the input [C, n] and of its stems [S, C, n]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How samples are written.

    Attributes:
        format: suffix without the dot.
        subtype: sample format, a name of libsndfile's; default the format's first.
        clip: what happens to samples beyond full scale, but in float files, of `CLIP_POLICIES`: cut
            each off, or turn the input down beforehand, so that stems and residual fit.
    """

    format: str = "wav"
    subtype: str | None = None
    clip: str = CLIP_POLICIES[0]

    def __post_init__(self):
        kind = WRITE_FORMATS.get(f".{self.format}")
        if kind is None:
            known = ", ".join(suffix[1:] for suffix in WRITE_FORMATS)
            raise ValueError(f"format={self.format!r} is not known; known are {known}")
        if self.subtype is None:
            object.__setattr__(self, "subtype", kind.subtypes[0])
        if self.subtype not in kind.subtypes:
            raise ValueError(
                f"format {self.format} cannot hold subtype {self.subtype}: use {kind.subtypes}"
            )
        if self.clip not in CLIP_POLICIES:
            raise ValueError(f"clip={self.clip!r} is not known; known are {CLIP_POLICIES}")

    @property
    def step(self) -> float:
        """Of the integer grid; 0 for float and lossy formats, which have none."""
        return _STEPS.get(self.subtype, 0.0)

    @property
    def rescales(self) -> bool:
        """Whether the loudest sample must be known before the first is written."""
        return self.clip == "rescale" and self.subtype != "FLOAT"


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which files are written besides those of the stems.

    Attributes:
        residual: whether what is left is.
        without: indices of stems; the input without these is written if there are any.
    """

    residual: bool = True
    without: tuple[int, ...] = ()


def slug(text: str) -> str:
    """Part of a file name: lower-case ASCII letters and digits joined by "-", at most 40."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    joined = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
    return joined[:_SLUG_CHARACTERS].rstrip("-") or "source"


def stem_names(names: Sequence[str], encoding: Encoding) -> list[str]:
    """File names of stems: 01_dog.wav, ..."""
    return [f"{i:02d}_{slug(name)}.{encoding.format}" for i, name in enumerate(names, 1)]


def residual_of(input_CT: np.ndarray, stems_SCT: np.ndarray) -> np.ndarray:
    """What stems leave of the input, float32 [C, n]."""
    # In float64: the sum of many stems would round more than the promised 1e-6.
    return (input_CT - stems_SCT.sum(0, dtype=np.float64)).astype(np.float32)


class Energies:
    """Energy of stems and residual, summed in float64 as they come."""

    def __init__(self, count: int):
        """For `count` stems."""
        self._energy_S = np.zeros(count + 1)

    def add(self, stems_SCT: np.ndarray, residual_CT: np.ndarray) -> None:
        """Takes a block."""
        for i, part_CT in enumerate((*stems_SCT, residual_CT)):
            self._energy_S[i] += np.sum(np.square(part_CT, dtype=np.float64))

    def shares(self) -> list[float]:
        """Energy of each stem over that of all and the residual; 0 where all are silent."""
        return [float(x) for x in self._energy_S[:-1] / (self._energy_S.sum() or 1.0)]


class StemFiles:
    """The files of one separation, written block by block; a context manager.

    On an integer grid the residual is the rounded input minus the rounded stems, so that what is
    read back sums to the input, but for samples that `clipping` counts. Lossy formats have no grid,
    but clip all the same.

    Attributes:
        names: file names of the stems.
        others: file names of what else is written, by `RESIDUAL` and `WITHOUT`.
        clipping: `policy`, `gain` by which everything was turned down, and `samples`, how many
            were cut off.
        energies: of what came, before rounding.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[str],
        encoding: Encoding,
        sample_rate_hz: int,
        channels: int,
        *,
        gain: float = 1.0,
        selection: Selection = Selection(),
    ):
        """Opens the files.

        Args:
            folder: exists.
            sources: names of the stems.
            encoding: of the files.
            sample_rate_hz: of the files.
            channels: of the files.
            gain: everything is turned down by it.
            selection: what is written besides the stems.

        Raises:
            AudioError: a file cannot be written, or the format cannot hold this.
        """
        self._encoding, self._gain, self._selection = encoding, gain, selection
        self.names = stem_names(sources, encoding)
        others = {RESIDUAL: selection.residual, WITHOUT: bool(selection.without)}
        self.others = {k: f"{k}.{encoding.format}" for k, wanted in others.items() if wanted}
        self.clipping = {"policy": encoding.clip, "gain": gain, "samples": 0}
        self.energies = Energies(len(sources))
        with contextlib.ExitStack() as closing:
            self._writers = {
                name: closing.enter_context(
                    AudioWriter(folder / name, sample_rate_hz, channels, encoding.subtype)
                )
                for name in (*self.names, *self.others.values())
            }
            self._closing = closing.pop_all()

    def __enter__(self) -> "StemFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.__exit__(*error)

    def write(self, input_CT: np.ndarray, stems_SCT: np.ndarray) -> None:
        """Appends a block, float32."""
        residual_CT = residual_of(input_CT, stems_SCT)
        self.energies.add(stems_SCT, residual_CT)
        if self._encoding.subtype == "FLOAT":
            stems, rest_CT = stems_SCT, residual_CT
        else:
            stems = [self._fitted(stem_CT * np.float64(self._gain)) for stem_CT in stems_SCT]
            scaled_CT = input_CT * np.float64(self._gain)
            if self._encoding.step:
                rest_CT = self._fitted(self._fitted(scaled_CT) - sum(stems))
            else:
                rest_CT = self._fitted(residual_CT * np.float64(self._gain))
        parts = dict(zip(self.names, stems, strict=True))
        if RESIDUAL in self.others:
            parts[self.others[RESIDUAL]] = rest_CT
        if WITHOUT in self.others:
            kept = [s for i, s in enumerate(stems) if i not in self._selection.without]
            total_CT = np.sum([rest_CT, *kept], axis=0, dtype=np.float64)
            is_float = self._encoding.subtype == "FLOAT"
            parts[self.others[WITHOUT]] = total_CT if is_float else self._fitted(total_CT)
        for name, part_CT in parts.items():
            self._writers[name].write(np.asarray(part_CT, np.float32))

    def _fitted(self, samples_CT: np.ndarray) -> np.ndarray:
        """Samples that the file can hold, float64; counts what is cut off."""
        if self._encoding.step:
            samples_CT, clipped = quantize(samples_CT, self._encoding.subtype)
        else:
            clipped = int((np.abs(samples_CT) > 1).sum())
            samples_CT = np.clip(samples_CT, -1, 1)
        self.clipping["samples"] += clipped
        return samples_CT


class Spool:
    """Input and stems on disk, while it is not known yet which of them are wanted, and how loud.

    A context manager; it takes 4 bytes for each sample of the input and of each stem.

    Attributes:
        energies: of what came.
    """

    def __init__(self, folder: Path, count: int, channels: int):
        """For `count` stems, in a file of `folder` that has no name."""
        self._file = tempfile.TemporaryFile(dir=folder)
        self._channels, self._lengths = channels, []
        self.energies = Energies(count)
        self._count = count

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, input_CT: np.ndarray, stems_SCT: np.ndarray) -> None:
        """Appends a block, float32."""
        self.energies.add(stems_SCT, residual_of(input_CT, stems_SCT))
        for part_CT in (input_CT, *stems_SCT):
            self._file.write(np.ascontiguousarray(part_CT, np.float32).data)
        self._lengths.append(input_CT.shape[1])

    def blocks(self, kept: Sequence[int]) -> Iterator[Block]:
        """The blocks from the beginning, of the stems only those with these indices."""
        self._file.seek(0)
        for length in self._lengths:
            shape = (self._count + 1, self._channels, length)
            parts = np.frombuffer(self._file.read(4 * int(np.prod(shape))), np.float32)
            parts = parts.reshape(shape)
            yield parts[0], parts[1:][list(kept)]


def gain_to_fit(
    blocks: Callable[[], Iterable[Block]], encoding: Encoding, without: Sequence[int] = ()
) -> float:
    """By how much everything must be turned down to fit; 1 where it does, or may be cut off.

    Args:
        blocks: gives input and stems, from the beginning.
        encoding: of the files.
        without: indices of stems; the input without these must fit too.
    """
    if not encoding.rescales:
        return 1.0
    peak, count = 0.0, 0
    for input_CT, stems_SCT in blocks():
        count = len(stems_SCT)
        parts = [input_CT, residual_of(input_CT, stems_SCT), *stems_SCT]
        if without:
            parts.append(residual_of(input_CT, stems_SCT[list(without)]))
        peak = max(peak, *(float(np.abs(part_CT).max()) for part_CT in parts))
    limit = 1 - (count + 2) * encoding.step  # rounding may add up in the residual
    return min(1.0, limit / max(peak, encoding.step, 1e-30))
