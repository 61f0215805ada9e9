"""What preparing costs: CPU seconds per 1,000 ten-second clips of each format, and per prompt.

    python -m benchmarks.prepare_speed [--clips 50]

Files are 44.1 kHz stereo noise, cut to 16 kHz mono records; ffmpeg's own time is counted. Prompts
are labels with the properties of the bank, embedded by MiniLM. One process.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from opensep_jax.data.cutting import CutCounts, cut_file
from opensep_jax.data.shards import AUDIO_CODECS, write_audio
from opensep_jax.text.bank import load_sounds
from opensep_jax.text.embed import load_text_encoder
from opensep_jax.text.parse import load_parser

FORMATS = ("wav", "flac", "ogg", "mp3", "m4a", "mp4")
FILE_HZ, RATE_HZ, SECONDS = 44_100, 16_000, 10


def main() -> None:
    """Prints a line per format, then those of the words."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--clips", type=int, default=50)
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for suffix in FORMATS:
            file = write_clip(Path(folder), suffix)
            if file is None:
                print(f"{suffix}: ffmpeg is not here")
                continue
            for codec in AUDIO_CODECS if suffix == "wav" else AUDIO_CODECS[:1]:
                seconds, size = cut(file, args.clips, Path(folder) / "x.arrayrecord", codec)
                print(
                    f"{suffix} -> {codec}: {1000 * seconds / args.clips:.1f} s per 1,000 clips, "
                    f"{1000 * size / args.clips / 2**20:.0f} MiB of records"
                )
    words()


def write_clip(folder: Path, suffix: str) -> Path | None:
    """A file of noise under a falling low-pass; None if it takes ffmpeg and that is missing."""
    rng = np.random.default_rng(0)
    noise_TC = 0.1 * np.cumsum(rng.standard_normal((SECONDS * FILE_HZ, 2)), 0)
    noise_TC -= np.linspace(noise_TC[0], noise_TC[-1], len(noise_TC))
    wave = folder / "source.wav"
    soundfile.write(wave, 0.5 * noise_TC / np.abs(noise_TC).max(), FILE_HZ, "PCM_16")
    if suffix == "wav":
        return wave
    file = folder / f"clip.{suffix}"
    if suffix in ("flac", "ogg", "mp3"):
        soundfile.write(file, soundfile.read(wave)[0], FILE_HZ)
        return file
    if shutil.which("ffmpeg") is None:
        return None
    picture = ["-f", "lavfi", "-i", f"testsrc=s=320x240:d={SECONDS}"] if suffix == "mp4" else []
    command = ["ffmpeg", "-v", "error", "-y", *picture, "-i", wave, "-c:a", "aac", file]
    subprocess.run(list(map(str, command)), check=True)
    return file


def cut(file: Path, clips: int, out: Path, codec: str) -> tuple[float, int]:
    """CPU seconds of this process and its children, and bytes of the shard."""

    def parts():
        for _ in range(clips):
            for start, pcm_T in cut_file(file, RATE_HZ, 30.0, CutCounts()):
                yield {"path": file.name, "start_samples": start}, pcm_T

    began = _cpu_s()
    write_audio(out, parts(), codec, RATE_HZ)
    return _cpu_s() - began, out.stat().st_size


def words() -> None:
    """Describing and embedding the names of the bank."""
    parser = load_parser(language_model="none", cache=Path(tempfile.mkdtemp()))
    encoder = load_text_encoder("minilm", 256)
    names = [sound.name for sound in load_sounds()]
    parser.describe(names[:16])
    encoder.encode([source.prompt for source in parser.describe(names[:64])])
    began = time.process_time()
    sources = parser.describe(names)
    told = time.process_time()
    encoder.encode([source.prompt for source in sources])
    done = time.process_time()
    print(f"describe: {1000 * (told - began) / len(names):.1f} s per 1,000 names")
    print(f"embed: {1000 * (done - told) / len(names):.1f} s per 1,000 prompts with properties")


def _cpu_s() -> float:
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
