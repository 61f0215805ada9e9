"""Peak memory of `infer` on long recordings: the process and all that it starts, in GB.

    python -m benchmarks.infer_memory [--minutes 60] [-- --query "a dog barks" --query "a cello"]

Writes noise with silences: a stereo file at 48 kHz of so many minutes, mono files at 16 kHz of a
twentieth and of half of that. Separates each in a process of its own, and checks that stems are
exactly as long as the input and that they and the residual sum to it. What follows `--` goes to
`infer`; without a query it listens, so captioner and language model are in memory, too.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

_EVERY_S = 0.05
_BLOCK_S = 10


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="benchmarks.infer_memory", description=__doc__)
    flags.add_argument("--minutes", type=float, default=60.0)
    flags.add_argument("rest", nargs="*", help="flags of infer, behind --")
    return flags


def write_noise(path: Path, seconds: float, rate_hz: int, channels: int) -> None:
    """Noise in PCM_16, every other ten seconds far softer."""
    rng, left = np.random.default_rng(0), round(seconds * rate_hz)
    with soundfile.SoundFile(path, "w", rate_hz, channels, "PCM_16") as file:
        for number in range(-(-left // (_BLOCK_S * rate_hz))):
            frames = min(left, _BLOCK_S * rate_hz)
            level = 0.1 if number % 2 else 0.001
            file.write(level * rng.standard_normal((frames, channels), np.float32))
            left -= frames


def peak_bytes(command: Sequence[str]) -> tuple[int, float]:
    """Most resident memory of a command and its descendants at one time, and how long it ran."""
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_resident_bytes, _family(process.pid))))
            time.sleep(_EVERY_S)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    return peak, time.monotonic() - start


def _family(pid: int) -> list[int]:
    found = [pid]
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in tasks.read_text().split():
                found += _family(int(child))
        except OSError:  # it has just ended
            continue
    return found


def _resident_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def check(path: Path, folder: Path) -> float:
    """Largest difference of the input and the sum of its parts, which are all as long.

    Raises:
        SystemExit: one is not.
    """
    files = [soundfile.SoundFile(part) for part in sorted(folder.glob("*.wav"))]
    worst = 0.0
    with soundfile.SoundFile(path) as whole:
        if wrong := [f.name for f in files if f.frames != whole.frames]:
            raise SystemExit(f"not {whole.frames} samples: {wrong}")
        for block_TC in whole.blocks(1 << 20, dtype="float64"):
            total_TC = sum(f.read(1 << 20, dtype="float64") for f in files)
            worst = max(worst, float(np.abs(total_TC - block_TC).max()))
    return worst


def main() -> int:
    """Prints a line for each file, and the ratio of the mono ones."""
    args = parser().parse_args()
    sizes = [("stereo", 60 * args.minutes, 48_000, 2)]
    sizes += [(f"mono_{part}", 60 * args.minutes / part, 16_000, 1) for part in (20, 2)]
    peaks = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, seconds, rate_hz, channels in sizes:
            path, out = Path(scratch, f"{name}.wav"), Path(scratch, "out")
            write_noise(path, seconds, rate_hz, channels)
            command = [sys.executable, "-m", "opensep_jax.infer", str(path), "--out", str(out)]
            peaks[name], took_s = peak_bytes([*command, *args.rest])
            error = check(path, out / name)
            print(
                f"{name:8} {seconds / 60:5.1f} min, {channels} x {rate_hz} Hz: peak "
                f"{peaks[name] / 1e9:.3f} GB in {took_s:.0f} s, the sum is off by {error:.1e}",
                flush=True,
            )
            path.unlink()
    ratio = peaks["mono_2"] / peaks["mono_20"]
    print(f"ten times the length takes {ratio:.3f} times the memory")
    return 0 if peaks["stereo"] < 2.5e9 and ratio <= 1.1 else 1


if __name__ == "__main__":
    sys.exit(main())
