"""The published layouts of MUSIC, VGGSound and AudioCaps, filled with short synthetic sounds."""

import csv
import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from opensep_jax import prepare
from opensep_jax.data.published import split_of
from opensep_jax.text.embed import TextEncoder, load_text_encoder
from opensep_jax.text.parse import Parser
from tests.scripted_model import letter_bank
from tests.tiny_dataset import SAMPLE_RATE_HZ, SOUNDS

MUSIC_CLASSES = ("acoustic_guitar", "cello", "flute", "violin", "xylophone", "tuba")  # tuba: unseen
VGG_LABELS = (
    "bird chirping, tweeting", "playing piano", "people marching", "dog barking", "typewriter",
    "owl hooting",
)  # fmt: skip  # owl hooting: unseen
CAPTIONS = ("A dog barks", "Rain falls, and thunder roars", "A man speaks", "A cat meows",
            "A bell rings while wind blows", "A horse trots")  # fmt: skip


def write_sound(file: Path, kind: int, take: int, seconds: float = 0.5) -> None:
    """One of `SOUNDS`, never twice the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([kind, take])
    time_s = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    sound = list(SOUNDS.values())[kind % len(SOUNDS)]
    soundfile.write(file, 0.4 * np.clip(sound(time_s, rng), -1, 1), SAMPLE_RATE_HZ, "PCM_16")


def write_music(root: Path, takes: int = 12) -> Path:
    """`MUSIC21_solo_videos.json`, a duet list and class folders; one solo in a dozen is missing."""
    videos: dict[str, list[str]] = {}
    for kind, name in enumerate(MUSIC_CLASSES):
        videos[name] = [f"{name[:5]:_<5}-{take:05d}" for take in range(takes)]
        for take, video in enumerate(videos[name][1:]):
            write_sound(root / "solo" / "audio" / name / f"{video}.wav", kind, take)
    duets = {"flute violin": ["duet_000000"], "tuba cello": ["duet_000001"]}
    for video in ("duet_000000", "duet_000001"):
        write_sound(root / "duet" / f"{video}.flac", 3, 0)
    lists = {"MUSIC21_solo_videos.json": videos, "MUSIC_duet_videos.json": duets}
    for file, content in lists.items():
        (root / file).write_text(json.dumps({"version": 2.0, "videos": content}))
    return root


def write_vggsound(root: Path, takes: int = 8) -> Path:
    """`vggsound.csv` and `<id>_<start>` clips of six labels.

    The first take of a label is gone, the second is for validation, the last for testing.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "vggsound.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        for kind, label in enumerate(VGG_LABELS):
            for take in range(takes):
                names = (f"-v{kind}_{take:05d}{i:02d}" for i in itertools.count())
                part = "val" if take == 1 else "train"
                video = next(name for name in names if split_of(name, {"val": 2}) == part)
                start = 10 * take
                split = "test" if take == takes - 1 else "train"
                writer.writerow([video, start, label, split])
                if take:
                    write_sound(root / "video" / f"{video}_{start:06d}.wav", kind, take)
    return root


def write_audiocaps(root: Path, takes: int = 5) -> Path:
    """Three CSV files, one caption for a training clip and five for the others."""
    number = 0
    for split, count in (("train", takes), ("val", 1), ("test", 1)):
        rows = []
        for kind, caption in enumerate(CAPTIONS):
            for take in range(count):
                video, start = f"Q{split[:2]}{kind}_{take:06d}", 30 * take
                write_sound(root / split / f"{video}_{start}.wav", kind, take + len(split))
                texts = [caption] if split == "train" else [caption + e for e in ("", *"1234")]
                for text in texts:
                    rows.append((number, video, start, text))
                    number += 1
        with (root / f"{split}.csv").open("w", newline="") as file:
            header = ("audiocap_id", "youtube_id", "start_time", "caption")
            csv.writer(file).writerows([header, *rows])
    return root


@functools.cache
def cached_encoder(name: str, max_tokens: int) -> TextEncoder:
    """One for all tests: it is compiled once."""
    return load_text_encoder(name, max_tokens)


WRITERS = {"audiocaps": write_audiocaps, "music": write_music, "vggsound": write_vggsound}


def prepare_published(name: str, folder: Path, encoder: Path, *options: object) -> Path:
    """Writes a data set and its records, parsed without a language model; returns the records."""
    root, out = folder / name, folder / f"{name}_records"
    if not root.exists():
        WRITERS[name](root)
    given = ("--dataset", name, "--root", root, "--out", out, "--text_encoder", encoder, *options)
    parser = Parser(None, letter_bank(), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "load_parser", lambda **options: parser)
        patch.setattr(prepare, "load_text_encoder", cached_encoder)
        assert prepare.main(prepare.parser().parse_args(list(map(str, given)))) == 0
    return out
