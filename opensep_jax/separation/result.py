"""What comes out of separating one signal: stems, what they are, and ways to keep and see them."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opensep_jax import __version__
from opensep_jax.separation.confidence import Evidence, confidence
from opensep_jax.separation.stemfiles import (
    RESIDUAL,
    Block,
    Encoding,
    Energies,
    StemFiles,
    gain_to_fit,
    residual_of,
)
from opensep_jax.signal.audio import BLOCK_FRAMES
from opensep_jax.signal.stft import Stft
from opensep_jax.text.source import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORD = "separation.json"
_PLOT_COLUMNS = 800


@dataclasses.dataclass(frozen=True)
class SeparatedSource:
    """One source of a separation.

    Attributes:
        name: what it is; equals the prompt when the source was queried.
        prompt: the text that the network was conditioned on.
        properties: how it sounds, if that is known; see `text.source.Source`.
        energy_share: energy of its stem over that of all stems and the residual, in [0, 1]; 0
            where all of them are silent.
        overlap: how much of it another stem holds too, in [0, 1]; see `confidence.Evidence`.
        agreement: cosine of its name and what a captioner hears in it; None where nobody listens.
        confidence: one figure of these, in [0, 1]; see `confidence.confidence`.
    """

    name: str
    prompt: str
    properties: dict
    energy_share: float
    overlap: float = 0.0
    agreement: float | None = None
    confidence: float = 0.0


def judge(
    asked: Sequence[Source],
    shares: Sequence[float],
    evidence: Evidence,
    agreements: Sequence[float | None] | None = None,
) -> tuple[SeparatedSource, ...]:
    """What is known of the stems of sources that were asked for."""
    overlaps = evidence.overlaps()
    agreements = agreements or [None] * len(asked)
    return tuple(
        SeparatedSource(
            source.name, source.prompt, source.properties, share, overlap, agreement,
            confidence(share, overlap, agreement),
        )
        for source, share, overlap, agreement in zip(
            asked, shares, overlaps, agreements, strict=True
        )
    )  # fmt: skip


def with_share(source: SeparatedSource, energy_share: float) -> SeparatedSource:
    """The source with another share of the energy, after others have gone to the residual."""
    figure = confidence(energy_share, source.overlap, source.agreement)
    return dataclasses.replace(source, energy_share=energy_share, confidence=figure)


@dataclasses.dataclass(frozen=True, eq=False)
class Separation:
    """Stems of one input, at its sample rate.

    Attributes:
        stems: float32 [S, C, T], in the order of the queries.
        residual: float32 [C, T], input minus the sum of the stems.
        sample_rate_hz: of both.
        sources: what the stems are.
        notes: what the user should know, such as where the model's band ends.
        caption: what was heard in the input, or said to be; None with queries alone.
    """

    stems: np.ndarray
    residual: np.ndarray
    sample_rate_hz: int
    sources: tuple[SeparatedSource, ...]
    notes: tuple[str, ...] = ()
    caption: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of the sources."""
        return [source.name for source in self.sources]

    @property
    def mixture(self) -> np.ndarray:
        """The input, float32 [C, T], to 1e-6."""
        return (self.stems.sum(0, dtype=np.float64) + self.residual).astype(np.float32)

    def save(
        self,
        folder: str | os.PathLike,
        format: str = "wav",
        subtype: str | None = None,
        clip: str = "clamp",
    ) -> list[Path]:
        """Writes `01_<name>.wav` and so on, `residual.wav` and `separation.json`.

        Args:
            folder: made where needed; files of these names in it are replaced.
            format: wav, flac, ogg or mp3.
            subtype: sample format; by default FLOAT in wav and PCM_16 in flac.
            clip: of samples beyond full scale, but in float files: `clamp` cuts them off,
                `rescale` turns everything down.

        Returns:
            Paths of the stems, then of the residual.

        Raises:
            ValueError: the format is not known, or cannot hold this.
        """
        folder, encoding = Path(folder), Encoding(format, subtype, clip)
        folder.mkdir(parents=True, exist_ok=True)
        channels, frames = self.residual.shape
        gain = gain_to_fit(self._blocks, encoding)
        with StemFiles(
            folder, self.names, encoding, self.sample_rate_hz, channels, gain=gain
        ) as files:
            for block in self._blocks():
                files.write(*block)
        notes = [*self.notes, *clipping_notes(files.clipping)]
        record = {
            "sample_rate_hz": self.sample_rate_hz,
            "channels": channels,
            "seconds": frames / self.sample_rate_hz,
            "caption": self.caption,
            "sources": described(self.sources, files.names),
            "residual": {"file": files.others[RESIDUAL]},
            "notes": notes,
            "clipping": files.clipping,
            "version": __version__,
        }
        write_record(folder, record)
        return [folder / name for name in (*files.names, files.others[RESIDUAL])]

    def plot(self) -> "Figure":
        """Spectrograms of the mixture, the stems and the residual, on one scale of levels."""
        from matplotlib.figure import Figure  # slow to import

        from opensep_jax.signal.pictures import spectrogram_db

        parts = {"mixture": self.mixture, **dict(zip(self._titles(), self.stems, strict=True))}
        parts["residual"] = self.residual
        size = 2 * max(8, round(self.sample_rate_hz * 0.032))
        figure = Figure(figsize=(9, 1.6 * len(parts)), layout="constrained")
        axes = figure.subplots(len(parts), sharex=True, squeeze=False)[:, 0]
        loudest_db = None
        for axis, (title, samples_CT) in zip(axes, parts.items(), strict=True):
            level_db = spectrogram_db(samples_CT.mean(0), Stft(size, size // 4), _PLOT_COLUMNS)
            loudest_db = level_db.max() if loudest_db is None else loudest_db
            seconds, top_khz = samples_CT.shape[1] / self.sample_rate_hz, self.sample_rate_hz / 2000
            axis.imshow(
                level_db, aspect="auto", origin="lower", cmap="magma", vmin=loudest_db - 70,
                vmax=loudest_db, extent=(0, seconds, 0, top_khz),
            )  # fmt: skip
            axis.set_title(title, loc="left", fontsize="small")
            axis.set_ylabel("kHz")
        axes[-1].set_xlabel("seconds")
        return figure

    def _titles(self) -> list[str]:
        return [
            f"{i} {source.name}: {100 * source.energy_share:.0f} % of the energy"
            for i, source in enumerate(self.sources, 1)
        ]

    def _blocks(self) -> list[Block]:
        starts = range(0, self.residual.shape[1], BLOCK_FRAMES)
        cuts = [slice(start, start + BLOCK_FRAMES) for start in starts]
        mixture_CT = self.mixture
        return [(mixture_CT[:, cut], self.stems[:, :, cut]) for cut in cuts]


def drop_faint(
    separation: Separation, samples_CT: np.ndarray, min_energy_share: float
) -> tuple[Separation, tuple[SeparatedSource, ...]]:
    """Leaves stems of negligible energy in the residual.

    Args:
        separation: of an input.
        samples_CT: that input, float32 [C, T].
        min_energy_share: sources with a smaller `energy_share` are dropped.

    Returns:
        The separation without them, and what they were.
    """
    loud = [source.energy_share >= min_energy_share for source in separation.sources]
    if all(loud):
        return separation, ()
    dropped = tuple(s for s, keep in zip(separation.sources, loud, strict=True) if not keep)
    kept = [s for s, keep in zip(separation.sources, loud, strict=True) if keep]
    stems = separation.stems[loud]
    residual, energies = residual_of(samples_CT, stems), Energies(len(stems))
    energies.add(stems, residual)
    sources = tuple(map(with_share, kept, energies.shares()))
    return dataclasses.replace(separation, stems=stems, residual=residual, sources=sources), dropped


def described(sources: Sequence[SeparatedSource], names: Sequence[str]) -> list[dict]:
    """What `separation.json` says of sources and their files."""
    return [
        dataclasses.asdict(source) | {"file": name}
        for source, name in zip(sources, names, strict=True)
    ]


def clipping_notes(clipping: dict) -> list[str]:
    """What to say where the clipping policy acted; see `stemfiles.StemFiles`."""
    notes = []
    if clipping["samples"]:
        notes.append(f"{clipping['samples']} samples were beyond full scale and were cut off")
    if clipping["gain"] != 1:
        notes.append(f"stems and residual sum to the input times {clipping['gain']:.6g}")
    return notes


def write_record(folder: Path, record: dict) -> None:
    """Writes `separation.json`."""
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
