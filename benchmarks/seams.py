"""What windows do to long recordings: quality by overlap, change under a shift, energy at seams.

    python -m benchmarks.seams --data SOUNDS [--mixtures 10 --seconds 30]

SOUNDS is a folder with `manifest.csv` (and `families.json`). Mixes clips of two labels, one after
the other, and separates them by their captions in windows that overlap by so many seconds. The
change is the SI-SDR of stems against those of the recording half a step later, so in other windows;
the seams are the cross-fades, whose squared error against the true sources is compared with that of
the other windows in the same places, where these have no seam.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from opensep_jax.api import Separator
from opensep_jax.data.datasets import read_folder
from opensep_jax.signal.audio import read_audio
from opensep_jax.signal.metrics import si_sdr
from opensep_jax.signal.resampling import resample
from opensep_jax.signal.streaming import Windows


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="benchmarks.seams", description=__doc__)
    flags.add_argument("--data", type=Path, required=True)
    flags.add_argument("--checkpoint", default="demo")
    flags.add_argument("--mixtures", type=int, default=10)
    flags.add_argument("--seconds", type=float, default=30.0)
    flags.add_argument("--overlaps", default="0.25,0.5,1.25,2.25", help="seconds")
    return flags


def mixtures(
    data: Path, count: int, seconds: float, rate_hz: int, sources: int = 2
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Captions, and sources of equal power, float32 [S, T], of labels of different families."""
    dataset = read_folder(data)
    family = {label: name for name, labels in dataset.families.items() for label in labels}
    by_label: dict[str, list] = {}
    for clip in dataset.clips:
        if clip.split == "val" and len(clip.sources) == 1:
            by_label.setdefault(clip.sources[0].name, []).append(clip)
    rng, samples = np.random.default_rng(0), round(seconds * rate_hz)
    while count:
        labels = [str(x) for x in rng.choice(sorted(by_label), sources, replace=False)]
        if len({family.get(label, label) for label in labels}) < sources:
            continue
        count -= 1
        waves = []
        for label in labels:
            parts = [read_audio(dataset.root / clip.path) for clip in by_label[label]]
            parts = [resample(p.samples_CT, p.sample_rate_hz, rate_hz).mean(0) for p in parts]
            wave_T = np.resize(np.concatenate(parts), samples)
            waves.append(0.1 * wave_T / np.sqrt(np.mean(wave_T**2)))
        yield [by_label[label][0].sources[0].caption for label in labels], np.stack(waves)


def windows_of(window: Windows, overlap_s: float, rate_hz: int) -> Windows:
    """The same windows with another overlap, rounded up to the hop."""
    hop = window.hop_samples
    overlap = -(-max(round(overlap_s * rate_hz), 2 * window.guard_samples + 1) // hop) * hop
    return Windows(window.window_samples, overlap, window.guard_samples, hop)


def measure(separator: Separator, captions: list[str], sources_ST: np.ndarray) -> list[float]:
    """SI-SDR improvement and SI-SDR of the shift, and squared errors at seams: own and shifted."""
    windows, rate_hz = separator.engine.windows, separator.engine.net.sample_rate_hz
    mix_T = sources_ST.sum(0)
    shift = windows.step_samples // 2 // windows.hop_samples * windows.hop_samples
    stems_ST = separator.separate(mix_T, rate_hz, captions).stems[:, 0]
    later_ST = separator.separate(mix_T[shift:], rate_hz, captions).stems[:, 0]
    joins = [start + windows.used_samples for start in windows.starts(len(mix_T))[:-1]]
    fades = np.concatenate([np.arange(join, join + windows.fade_samples) for join in joins])
    fades = fades[(fades >= shift) & (fades < len(mix_T))]
    errors = [
        float(np.sum((part_SX - sources_ST[:, fades]) ** 2))
        for part_SX in (stems_ST[:, fades], later_ST[:, fades - shift])
    ]
    improvement = np.mean(si_sdr(stems_ST, sources_ST) - si_sdr(mix_T[None], sources_ST))
    return [float(improvement), float(np.mean(si_sdr(later_ST, stems_ST[:, shift:]))), *errors]


def main() -> int:
    """Prints a line for each overlap."""
    args = parser().parse_args()
    separator = Separator.from_pretrained(args.checkpoint)
    engine = separator.engine
    whole, rate_hz = engine.windows, engine.net.sample_rate_hz
    sounds = list(mixtures(args.data, args.mixtures, args.seconds, rate_hz))
    for overlap_s in map(float, args.overlaps.split(",")):
        engine.windows = windows_of(whole, overlap_s, rate_hz)
        rows = np.array([measure(separator, *sound) for sound in sounds])
        seams_db = 10 * np.log10(rows[:, 2].sum() / rows[:, 3].sum())
        windows = len(engine.windows.starts(round(args.seconds * rate_hz)))
        print(
            f"overlap {engine.windows.overlap_samples / rate_hz:.2f} s ({windows} windows): SI-SDR "
            f"improvement {rows[:, 0].mean():.2f} dB, of shifted windows {rows[:, 1].mean():.1f} dB"
            f", error at seams {seams_db:+.2f} dB",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
