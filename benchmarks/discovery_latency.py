"""Where the time goes when recordings are separated without a query: a batch of 16, cold and warm.

    python -m benchmarks.discovery_latency examples/*.flac [--files 16 --seconds 5]

Cuts the recordings into different clips of one length and puts two batches of them through the
stages of `infer`. The first batch compiles, the second one should not; how often each function of
the separator was traced is printed after both.
"""

import argparse
import collections
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from opensep_jax.api import Separator
from opensep_jax.discovery import Discovery
from opensep_jax.signal.audio import read_audio
from opensep_jax.text.caption import load_captioner
from opensep_jax.text.parse import load_parser

STAGES = ("load", "captioner", "LLaMA and bank", "text encoder", "separator")


class Clock(collections.Counter):
    """Seconds by stage."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time within."""
        start = time.monotonic()
        yield
        self[name] += time.monotonic() - start


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="benchmarks.discovery_latency", description=__doc__)
    flags.add_argument("inputs", nargs="+", type=Path)
    flags.add_argument("--files", type=int, default=16)
    flags.add_argument("--seconds", type=float, default=5.0)
    return flags


def clips(paths: Sequence[Path], seconds: float) -> Iterator[tuple[np.ndarray, int]]:
    """Endlessly many different clips, [C, T] and rate: the recordings, shifted round and round."""
    sounds = [read_audio(path) for path in paths]
    for number, sound in zip(itertools.count(), itertools.cycle(sounds), strict=False):
        samples = round(seconds * sound.sample_rate_hz)
        shift = 997 * number  # samples
        yield np.resize(np.roll(sound.samples_CT, shift, 1)[0], (1, samples)), sound.sample_rate_hz


def run(separator: Separator, discovery: Discovery, batch: Sequence, clock: Clock) -> None:
    """One batch through all stages."""
    with clock.stage("captioner"):
        heard = [discovery.hear(*clip) for clip in batch]
        captions = discovery.tell(heard)
    with clock.stage("LLaMA and bank"):
        found = discovery.read(captions)
    with clock.stage("text encoder"):
        for part in found:
            separator.engine.encoder.encode([source.prompt for source in part.sources])
    with clock.stage("separator"):  # embeds the prompts once more
        for (samples_CT, rate_hz), part in zip(batch, found, strict=True):
            separator.separate(samples_CT, rate_hz, part.sources)


def main() -> int:
    """Prints seconds and shares of each stage, cold and warm."""
    args = parser().parse_args()
    cold, warm = Clock(), Clock()
    with tempfile.TemporaryDirectory() as cache:  # no caption was parsed before
        with cold.stage("load"):
            separator = Separator.from_pretrained("demo")
            language = load_parser(cache=Path(cache), batch=8)
            discovery = Discovery(load_captioner("demo"), language)
        endless = clips(args.inputs, args.seconds)
        run(separator, discovery, list(itertools.islice(endless, args.files)), cold)
        traced = dict(separator.engine.traces)
        run(separator, discovery, list(itertools.islice(endless, args.files)), warm)
    for name, clock in (("cold", cold), ("warm", warm)):
        total = clock.total()
        print(f"{name}: {args.files} files of {args.seconds:g} s in {total:.2f} s")
        for stage in STAGES:
            print(f"  {stage:15} {clock[stage]:7.2f} s  {100 * clock[stage] / total:5.1f} %")
    after = separator.engine.traces
    print(f"traces of the separator: {traced} after the first batch, {after} after both")
    return 0


if __name__ == "__main__":
    sys.exit(main())
