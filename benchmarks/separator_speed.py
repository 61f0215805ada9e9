"""Throughput of `base` against the predecessor's network in PyTorch: three prompts for each file.

    git clone https://github.com/microsoft/BiModalAudioSeparation PEER
    python -m benchmarks.separator_speed PEER [--files 20 --long 0]

Needs the extra `test-torch`. Both have random weights and random token states (what prompts cost is
left out on both sides), read the same files, separate three prompts, and write the stems as WAV.
The peer is run as its `demo.py` runs: mono, windows of 131,070 samples with zeros behind the last,
one prompt after the other; its figures are left out. Files take turns, so that whatever else the
machine does befalls both; each is compiled or warmed up before. Prints CPU and wall time of
both, the share of padding, and how often the network was traced after it had met each shape once.
"""

import argparse
import contextlib
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks.infer_batches import write_files
from opensep_jax.separation.engine import Engine, Processed, Text
from opensep_jax.separation.stemfiles import Encoding, StemFiles
from opensep_jax.separation.stream import Signal, Task, separate_all
from opensep_jax.separator import abstract_params, build_separator
from opensep_jax.signal.audio import AudioError, AudioReader, audio_info, read_audio
from opensep_jax.signal.resampling import resample
from opensep_jax.signal.write import write_audio

RATE_HZ, PROMPTS, TOKENS, WIDTH = 16_000, 3, 32, 768
PEER_TOKENS, PEER_WINDOW, PEER_FFT, PEER_HOP = 77, 131_070, 1022, 256  # of demo.py and the README


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="benchmarks.separator_speed", description=__doc__)
    flags.add_argument("peer", type=Path, help="checkout of the predecessor's repository")
    flags.add_argument("--files", type=int, default=20, help="of median length 3 s")
    flags.add_argument("--long", type=int, default=0, help="of them of ten minutes")
    flags.add_argument("--size", default="base", help="of our network")
    flags.add_argument("--window_s", type=float, default=5.0, help="of our network")
    return flags


class Clock:
    """CPU and wall seconds within."""

    def __init__(self):
        self.cpu_s = self.wall_s = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Adds the time within."""
        cpu_s, wall_s = time.process_time(), time.monotonic()
        yield
        self.cpu_s += time.process_time() - cpu_s
        self.wall_s += time.monotonic() - wall_s


class Files:
    """A sink that writes stems and residual."""

    def __init__(self, folder: Path, signal: Signal):
        names = [f"source {i}" for i in range(PROMPTS)]
        rate_hz, channels = signal.sample_rate_hz, signal.channels
        self._files = StemFiles(folder, names, Encoding(), rate_hz, channels)
        self.write = self._files.write

    def heard(self, processed: Processed) -> None:
        """Not needed."""

    def finish(self) -> None:
        """Closes the files."""
        self._files.__exit__(None, None, None)

    def abort(self) -> None:
        """Does not happen here: the files are sound."""


def ours(size: str, window_s: float) -> tuple[Engine, Callable[[Path, Path], None]]:
    """An engine, and what separates a file into a folder with it."""
    net = build_separator(
        size=size, dtype="float32", remat=False, n_fft_samples=1022, hop_samples=256,
        sample_rate_hz=RATE_HZ,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), abstract_params(net, WIDTH)
    )
    engine = Engine(net, params, None, window_s=window_s)
    states_PLC = rng.standard_normal((PROMPTS, TOKENS, WIDTH), np.float32)
    text = Text(states_PLC, np.ones((PROMPTS, TOKENS), bool), PROMPTS, 0)

    def run(path: Path, folder: Path) -> None:
        task = Task(lambda: AudioReader(path), text, lambda signal: Files(folder, signal))
        for event in separate_all([task], engine):
            if event.error is not None:
                raise event.error

    return engine, run


def theirs(checkout: Path) -> Callable[[Path, Path], None]:
    """What separates a file into a folder with the predecessor's network."""
    import torch  # of the extra test-torch

    sys.modules.setdefault("utils", types.ModuleType("utils"))  # imported there and not used
    sys.path.insert(0, str(checkout / "models"))
    from cond_unet_attn import CondAttUNet
    from synthesizer_net import InnerProd

    torch.manual_seed(0)
    net = CondAttUNet(
        out_dim=32, cond_dim=WIDTH, num_downs=7, num_cond_blocks=1, num_res_layers=1, num_head=8,
        cond_layer="sca",
    ).eval()  # fmt: skip
    synthesizer = InnerProd(32).eval()
    states = torch.randn(PROMPTS, 1, PEER_TOKENS, WIDTH)
    conditions = torch.sigmoid(torch.randn(PROMPTS, 1, 32))
    window = torch.hann_window(PEER_FFT)

    @torch.no_grad()
    def separate(wave: torch.Tensor, prompt: int) -> torch.Tensor:
        spectrum = torch.stft(wave, PEER_FFT, PEER_HOP, window=window, return_complex=True)
        magnitude = spectrum.abs()[None, None]  # [1, 1, 512, 512]
        feature = net(torch.log1p(magnitude), states[prompt])
        mask = torch.sigmoid(synthesizer(conditions[prompt], feature))
        return torch.istft(
            spectrum * mask[0, 0], PEER_FFT, PEER_HOP, window=window, length=len(wave)
        )

    def run(path: Path, folder: Path) -> None:
        audio = read_audio(path)
        wave_1T = resample(audio.samples_CT.mean(0, keepdims=True), audio.sample_rate_hz, RATE_HZ)
        length = wave_1T.shape[1]
        padded_T = np.pad(wave_1T[0], (0, PEER_WINDOW - length % PEER_WINDOW))
        waves = torch.from_numpy(padded_T.clip(-1, 1)).split(PEER_WINDOW)
        for prompt in range(PROMPTS):
            stem_T = torch.cat([separate(wave, prompt) for wave in waves])[:length].numpy()
            write_audio(folder / f"{prompt}.wav", stem_T[None], RATE_HZ)

    return run


def main() -> int:
    """Prints both times and their ratio."""
    args = parser().parse_args()
    engine, our_run = ours(args.size, args.window_s)
    sides = {"ours": (our_run, Clock()), "peer": (theirs(args.peer), Clock())}
    with tempfile.TemporaryDirectory() as scratch:
        inputs, out = Path(scratch, "in"), Path(scratch, "out")
        out.mkdir()
        write_files(inputs, args.files, args.long, seed=0)
        paths = [path for path in sorted(inputs.rglob("*")) if path.is_file() and _is_sound(path)]
        seconds = sum(audio_info(path).seconds for path in paths)
        longest_first = sorted(paths, key=lambda path: -audio_info(path).seconds)
        quarter_s = args.window_s / 4
        shapes = {min(4, int(audio_info(p).seconds / quarter_s)): p for p in longest_first}
        for path in shapes.values():  # the shortest file of every shape
            our_run(path, out)
        sides["peer"][0](longest_first[-1], out)
        traced, engine.work = engine.traces, type(engine.work)()
        for path in paths:
            for run, clock in sides.values():
                with clock.running():
                    run(path, out)
            spent = ", ".join(f"{name} {clock.cpu_s:.0f} s" for name, (_, clock) in sides.items())
            print(f"{path.name}: CPU so far: {spent}", file=sys.stderr)
    for name, (_, clock) in sides.items():
        print(
            f"{name}: {clock.cpu_s:.0f} s of CPU, {clock.wall_s:.0f} s of wall for {seconds:.0f} s "
            f"of sound in {len(paths)} files with {PROMPTS} prompts each"
        )
    (_, mine), (_, peer) = sides.values()
    ratio = peer.cpu_s / mine.cpu_s
    print(f"ratio: {ratio:.2f} by CPU time, {peer.wall_s / mine.wall_s:.2f} by wall time")
    print(f"padding: {100 * engine.work.waste:.1f} % of the network's work")
    retraced = engine.traces["masks"] - traced["masks"]
    print(f"the network was traced {retraced} times after it had met each shape once")
    return 0 if ratio >= 2 and engine.work.waste < 0.15 and not retraced else 1


def _is_sound(path: Path) -> bool:
    try:
        read_audio(path)
    except AudioError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
