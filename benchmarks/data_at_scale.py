"""Preparing and reading many clips: speed per core, memory, and how soon the first batch is there.

    python -m benchmarks.data_at_scale --work FOLDER [--clips 100000]

Half-second clips in the layout of AudioCaps, with at most 1,000 distinct captions, are prepared
(rule-based parser, MiniLM prompts) and read; then clips of four seconds are read as PCM16 and as
FLAC. Rates are per second of CPU time of one process; files come from the page cache.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from opensep_jax.data import shards
from opensep_jax.data.pipeline import MixtureExamples, MixtureRule, batches
from opensep_jax.data.records import PreparedDataset
from opensep_jax.data.shards import SourceEntry
from opensep_jax.data.storage import write_bytes, write_json
from opensep_jax.data.text_table import write_text_shard

RATE_HZ = 16000
ANIMALS = ("dog", "cat", "cow", "horse", "crow", "duck", "frog", "goat", "owl", "pig")
VERBS = tuple("barks calls cries howls moans roars sings whines growls coos".split())
PLACES = (
    *("rain falls", "wind blows", "a bell rings", "a car passes", "a man speaks"),
    *("a clock ticks", "water runs", "a door slams", "a train passes", "music plays"),
)
WORDINGS = {"caption": 0.35, "label": 0.2, "paraphrase": 0.3, "description": 0.15}


def main() -> None:
    """Runs all parts and prints a table."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--work", required=True, type=Path)
    flags.add_argument("--clips", type=int, default=100_000)
    flags.add_argument("--part", choices=("prepare", "read", "first"), help="one, in this process")
    flags.add_argument("--folder", type=Path, help="of the records of --part")
    args = flags.parse_args()
    if args.part:
        print(json.dumps(globals()[f"_{args.part}"](args)))
        return
    if not (args.work / "audiocaps" / "train.csv").exists():
        write_clips(args.work / "audiocaps", args.clips)
    rows = {f"prepare {args.clips} clips of 0.5 s": _run(args, "prepare", args.work / "records")}
    rows |= {"first batch of 64 mixtures": _run(args, "first", args.work / "records")}
    rows |= {f"read {args.clips} clips of 0.5 s": _run(args, "read", args.work / "records")}
    for codec in shards.AUDIO_CODECS:
        folder = args.work / f"four_seconds_{codec}"
        if not folder.exists():
            write_records(folder, codec)
        rows[f"read 4 s clips, {codec}"] = _run(args, "read", folder)
    for name, found in rows.items():
        print(f"{name:36s} {', '.join(f'{k} {v}' for k, v in found.items())}")


def write_clips(root: Path, clips: int) -> None:
    """A data set of different short sounds in the layout of AudioCaps."""
    (root / "train").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    noise_T = 0.2 * rng.standard_normal(4 * RATE_HZ)
    captions = [f"A {a} {v} while {p}" for a in ANIMALS for v in VERBS for p in PLACES]
    rows = [("audiocap_id", "youtube_id", "start_time", "caption")]
    for number in range(clips):
        start = int(rng.integers(len(noise_T) - RATE_HZ // 2))
        wave_T = noise_T[start : start + RATE_HZ // 2] * rng.uniform(0.2, 1)
        soundfile.write(root / "train" / f"v{number:010d}_0.wav", wave_T, RATE_HZ, "PCM_16")
        rows.append((number, f"v{number:010d}", 0, captions[number % len(captions)]))
    with (root / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_records(folder: Path, codec: str, clips: int = 4096) -> None:
    """Records of four-second sounds, half tone and half noise, without `prepare`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    time_s = np.arange(4 * RATE_HZ) / RATE_HZ

    def sounds() -> Iterator[tuple[dict, np.ndarray]]:
        for number in range(clips):
            tone_T = np.sin(2 * np.pi * rng.uniform(100, 2000) * time_s)
            wave_T = 0.2 * tone_T + 0.02 * rng.standard_normal(len(time_s))
            yield {"path": str(number), "start_samples": 0}, (32767 * wave_T).astype(np.int16)

    names = [f"sound {number}" for number in range(8)]
    keys = [shards.prompt_key(name, "none") for name in names]
    sources = [
        SourceEntry(name, {kind: [key] for kind in WORDINGS})
        for name, key in zip(names, keys, strict=True)
    ]
    stem = folder / shards.shard_name("clips-train", 0, 1)
    rows = shards.write_audio(stem.with_suffix(".arrayrecord"), sounds(), codec, RATE_HZ)
    entries = [(row, [sources[i % 8]], [], {}) for i, row in enumerate(rows)]
    write_bytes(stem.with_suffix(".index"), shards.pack_index(stem, entries, []))
    states_LC = np.zeros((4, 8), np.float32)
    texts = [(key, name, states_LC) for key, name in zip(keys, names, strict=True)]
    write_text_shard(folder / shards.shard_name("text", 0, 1), texts)
    info = {"schema": shards.SCHEMA_VERSION, "sample_rate_hz": RATE_HZ, "audio": codec}
    info |= {
        "text": {"shards": 1, "width": 8},
        "families": {},
        "scenes": {},
        "text_encoder": {"id": "none"},
    }
    write_json(
        folder / "dataset.json", info | {"splits": {"train": {"shards": 1, "clips": len(rows)}}}
    )


def _run(args: argparse.Namespace, part: str, folder: Path) -> dict:
    """A part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data_at_scale", "--part", part]
    command += ["--work", args.work, "--folder", folder, "--clips", args.clips]
    run = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def _prepare(args: argparse.Namespace) -> dict:
    from opensep_jax import prepare
    from opensep_jax.preparation import stages as preparing

    memory, cut_clips = [], preparing._cut_clips

    def watched(*given: object) -> Iterator:
        memory.append(_memory_mib())
        return cut_clips(*given)

    preparing._cut_clips = watched
    given = ["--dataset", "audiocaps", "--root", args.work / "audiocaps", "--out", args.folder]
    given += ["--language_model", "none"]
    began, cpu = time.perf_counter(), time.process_time()
    assert prepare.main(prepare.parser().parse_args(list(map(str, given)))) == 0
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tenth = memory[max(len(memory) // 10, 1)] if len(memory) > 1 else 0
    return {
        "seconds": round(seconds, 1),
        "cpu_s_per_1000": round(1000 * cpu / args.clips, 2),
        "MiB_at_a_tenth": tenth,
        "MiB_at_the_last_shard": memory[-1] if memory else 0,
        "MiB_at_the_end": _memory_mib(),
    }


def _read(args: argparse.Namespace) -> dict:
    began = time.process_time()
    dataset = PreparedDataset(args.folder, "train")
    opened = time.process_time() - began
    order = np.random.default_rng(0).permutation(len(dataset))
    for index in order[: len(order) // 10]:
        dataset.audio(int(index))
    before, began = _memory_mib(), time.process_time()
    for index in order:
        dataset.audio(int(index))
    read = len(order) / (time.process_time() - began)
    rule = MixtureRule(min(2 * RATE_HZ, dataset.table.samples_I[0]), {4: 1.0}, WORDINGS, True, 2, 0)
    examples = MixtureExamples(dataset, rule, 10**6)
    began = time.process_time()
    for index in range(1000):
        examples[index]
    mixed = 4000 / (time.process_time() - began)
    return {
        "open_s": round(opened, 2),
        "clips_per_s": round(read),
        "drawn_and_cropped_per_s": round(mixed),
        "MiB_before": before,
        "MiB_after": _memory_mib(),
    }


def _first(args: argparse.Namespace) -> dict:
    dataset = PreparedDataset(args.folder, "train")
    opened = time.perf_counter()
    rule = MixtureRule(RATE_HZ // 2, {4: 1.0}, WORDINGS, True, 2, 0)
    stream = batches(
        MixtureExamples(dataset, rule, 10**6), global_batch=64, first_step=1000, process=0,
        processes=1, workers=0, threads=4,
    )  # fmt: skip
    next(stream)
    found = {"after_the_process_began_s": round(time.time() - _began(), 2)}
    found |= {"after_opening_s": round(time.perf_counter() - opened, 2)}
    return found | {"cpu_s": round(time.process_time(), 2)}


def _began() -> float:
    """When this process was started, Unix time."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if "btime" in line)
    return int(boot.split()[1]) + ticks / 100


def _memory_mib() -> int:
    """Memory of this process that is in use, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


if __name__ == "__main__":
    main()
