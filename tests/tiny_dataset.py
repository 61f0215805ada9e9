"""A folder of short synthetic sounds, as a user would have it, and its records."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from opensep_jax import prepare

SAMPLE_RATE_HZ = 16000
CLIPS_PER_LABEL = 4  # the last one is validation
FAMILIES = {"tones": ["low tone", "high tone"], "chirps": ["rising chirp", "falling chirp"]}


def _tone(low_hz: float, high_hz: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """A tone that glides from about one frequency to about the other."""

    def sound(time_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scale = rng.uniform(0.9, 1.1)
        glide_hz = (high_hz - low_hz) / time_s[-1]
        return np.sin(2 * np.pi * scale * (low_hz * time_s + glide_hz * time_s**2 / 2))

    return sound


def _hum(time_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return sum(
        np.sin(2 * np.pi * 110 * rng.uniform(0.98, 1.02) * k * time_s) / k for k in (1, 2, 3)
    )


def _white_noise(time_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(len(time_s)) / 3


def _dark_noise(time_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.convolve(rng.standard_normal(len(time_s)), np.ones(32) / 16, "same")


def _clicks(time_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.exp(-60 * (time_s % rng.uniform(0.1, 0.15))) * rng.standard_normal(len(time_s))


SOUNDS = {
    "low tone": _tone(200, 200),
    "high tone": _tone(2000, 2000),
    "rising chirp": _tone(300, 3000),
    "falling chirp": _tone(3000, 300),
    "hum": _hum,
    "white noise": _white_noise,
    "dark noise": _dark_noise,
    "clicks": _clicks,
}


def write_tiny_sounds(folder: Path) -> Path:
    """Writes 8 labels x 4 clips of 0.4 to 1.2 s, `manifest.csv` and `families.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for label, sound in SOUNDS.items():
        for take in range(CLIPS_PER_LABEL):
            rng = np.random.default_rng([len(rows), 0])
            time_s = np.arange(int(rng.uniform(0.4, 1.2) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
            path = f"{label.replace(' ', '_')}-{take}.wav"
            wave_T = rng.uniform(0.1, 0.6) * np.clip(sound(time_s, rng), -1, 1)
            soundfile.write(folder / path, wave_T, SAMPLE_RATE_HZ, "PCM_16")
            split = "val" if take == CLIPS_PER_LABEL - 1 else "train"
            caption = f"The sound of {label}, take {take % 2}."
            rows.append((path, label, caption, split, "CC0"))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "caption", "split", "licence"), *rows])
    (folder / "families.json").write_text(json.dumps(FAMILIES))
    return folder


def prepare_folder(root: Path, out: Path, encoder: Path, *options: str) -> int:
    """Runs `prepare` on a `folder` data set; returns its exit code."""
    given = ["--dataset", "folder", "--root", root, "--out", out, "--text_encoder", encoder]
    return prepare.main(prepare.parser().parse_args([*map(str, given), *options]))
