"""Proof that `infer` can be relied on: broken files, kill -9, shards; results equal to the byte.

    python -m benchmarks.infer_batches [--files 200 --kills 10 --shards 8]

Writes files of mixed formats, rates, channels and lengths (median 3 s, some of ten minutes, one of
0.02 s), a fifth of them broken in several ways. Separates them uninterrupted, killed and started
again, and in shards, which run two at a time; then compares audio, JSON but for `timings_s`, and
sorted manifests. What follows `--` goes to `infer`.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

_KINDS = (("wav", "PCM_16"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("wav", "FLOAT"))
_KINDS += (("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_16"))
_RATES_HZ = (16_000, 44_100, 48_000, 22_050, 8000)
_BROKEN = ("empty", "text", "header", "nan", "silent header", "torn flac", "cut mp3")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="benchmarks.infer_batches", description=__doc__)
    flags.add_argument("--files", type=int, default=200)
    flags.add_argument("--long", type=int, default=3, help="of them of ten minutes")
    flags.add_argument("--kills", type=int, default=10)
    flags.add_argument("--shards", type=int, default=8, help="0 for none")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("rest", nargs="*", help="flags of infer, behind --")
    return flags


def write_files(folder: Path, count: int, long: int, seed: int) -> int:
    """Writes the inputs into a folder and subfolders; returns how many are broken."""
    rng = np.random.default_rng(seed)
    broken = count // 5
    for number in range(count):
        place = folder / ("deep/er" if number % 7 == 3 else "")
        place.mkdir(parents=True, exist_ok=True)
        if number < broken:
            _write_broken(place, number, _BROKEN[number % len(_BROKEN)])
            continue
        seconds = 3 * np.exp(0.6 * rng.standard_normal())
        seconds = 0.02 if number == broken else 600.0 if number > count - 1 - long else seconds
        suffix, subtype = _KINDS[number % len(_KINDS)]
        rate_hz = int(rng.choice(_RATES_HZ if suffix != "mp3" else _RATES_HZ[:4]))
        shape = (max(1, round(seconds * rate_hz)), int(rng.integers(1, 3)))
        level = 0.1 * (1 + np.sin(np.arange(shape[0]) / rate_hz))[:, None].astype(np.float32)
        file = place / f"{number:03d}.{suffix}"
        with soundfile.SoundFile(file, "w", rate_hz, shape[1], subtype) as stream:
            for start in range(0, shape[0], 1 << 16):
                part = level[start : start + (1 << 16)]
                stream.write(part * rng.standard_normal((len(part), shape[1]), np.float32))
    return broken


def _write_broken(folder: Path, number: int, kind: str) -> None:
    file = folder / f"{number:03d}.wav"
    noise_T = np.random.default_rng(number).uniform(-0.1, 0.1, 200_000)
    if kind == "empty":
        file.touch()
    elif kind == "text":
        file.write_text("this is no sound " * 100)
    elif kind == "header":
        file.write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt ")
    elif kind == "nan":
        noise_T[150_000] = np.nan
        soundfile.write(file, noise_T, 16_000, "FLOAT")
    elif kind == "silent header":
        soundfile.write(file, noise_T[:0], 16_000)
    elif kind == "cut mp3":
        file = file.with_suffix(".mp3")
        soundfile.write(file, noise_T, 16_000)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file = file.with_suffix(".flac")
        soundfile.write(file, noise_T, 16_000)
        data = bytearray(file.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        file.write_bytes(data)


def start(inputs: Path, out: Path, flags: Sequence[str]) -> subprocess.Popen:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "opensep_jax.infer", str(inputs), "--out", str(out), *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_and_rerun(inputs: Path, out: Path, flags: Sequence[str], kills: int, seed: int) -> int:
    """Kills a run at random moments of its work, then lets it finish; returns its exit code."""
    rng, journal = random.Random(seed), out / ".manifest.jsonl.part"
    files = sum(path.is_file() for path in inputs.rglob("*"))
    for _ in range(kills):
        process, before = start(inputs, out, flags), _lines(journal)
        # A line when a result is begun, one when it is done; a killed run goes over what is done.
        wanted = rng.randint(1, max(2, 2 * files // kills))
        while process.poll() is None and _lines(journal) < before + wanted:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    return start(inputs, out, flags).wait()


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def run_shards(inputs: Path, out: Path, flags: Sequence[str], shards: int) -> list[int]:
    """Exit codes of shards, of which two run at a time, and of their merge."""
    codes = []
    for first in range(0, shards, 2):
        pair = range(first, min(first + 2, shards))
        own = [["--num_shards", str(shards), "--shard", str(i)] for i in pair]
        running = [start(inputs, out, [*flags, *shard]) for shard in own]
        codes += [process.wait() for process in running]
    merge = [sys.executable, "-m", "opensep_jax.infer", "--merge", str(out)]
    return [*codes, subprocess.run(merge, capture_output=True).returncode]


def results(out: Path) -> dict[str, str]:
    """What must be equal: checksums of audio and of JSON without times, and the sorted manifest."""
    found = {}
    for path in sorted(out.rglob("*")):
        name, content = str(path.relative_to(out)), path.is_file() and path.read_bytes()
        if not content or name.startswith(("manifest-", ".manifest")):
            continue
        if path.name == "separation.json":
            content = json.dumps(json.loads(content) | {"timings_s": None}).encode()
        elif name == "manifest.jsonl":
            content = b"\n".join(sorted(content.splitlines()))
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def compare(name: str, want: dict[str, str], got: dict[str, str]) -> bool:
    """Prints whether results are equal, and which are not."""
    wrong = sorted(key for key in want.keys() | got.keys() if want.get(key) != got.get(key))
    print(f"{name}: {len(got)} files, {'equal' if not wrong else f'different: {wrong[:5]}'}")
    return not wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each run."""
    args = parser().parse_args(argv)
    flags = args.rest or ["--query", "a dog barks", "--query", "a cello plays"]
    with tempfile.TemporaryDirectory() as scratch:
        inputs, whole, killed, shards = (Path(scratch, x) for x in ("in", "out", "kill", "shard"))
        broken = write_files(inputs, args.files, args.long, args.seed)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/compiled")
        begun = time.monotonic()
        code = start(inputs, whole, flags).wait()
        lines = [json.loads(x) for x in (whole / "manifest.jsonl").read_text().splitlines()]
        errors = [line for line in lines if line["status"] == "error"]
        print(
            f"uninterrupted: exit code {code} after {time.monotonic() - begun:.0f} s, "
            f"{len(lines) - len(errors)} done, {len(errors)} of {broken} broken ones reported",
            flush=True,
        )
        good = code == 1 and len(errors) == broken and len(lines) == args.files
        want = results(whole)
        code = kill_and_rerun(inputs, killed, flags, args.kills, args.seed)
        good &= code == 1 and compare(f"killed {args.kills} times", want, results(killed))
        if args.shards:
            codes = run_shards(inputs, shards, flags, args.shards)
            good &= codes[-1] == 1 and set(codes) <= {0, 1}
            good &= compare(f"{args.shards} shards", want, results(shards))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
