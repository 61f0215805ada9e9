"""The published layouts of MUSIC, VGGSound and AudioCaps, filled with short synthetic sounds."""

import csv
import json
from pathlib import Path

import numpy as np
import soundfile

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
    """`vggsound.csv` and `<id>_<start>` clips, the last take of a label in the test split."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "vggsound.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        for kind, label in enumerate(VGG_LABELS):
            for take in range(takes):
                video, start = f"-v{kind}_{take:06d}x", 10 * take
                split = "test" if take == takes - 1 else "train"
                writer.writerow([video, start, label, split])
                if take:  # the first is gone
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
