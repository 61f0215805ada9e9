"""How many times faster BSS-eval of sources is here than in mir_eval, on one CPU core.

    taskset -c 0 python -m benchmarks.bss_eval_speed    # needs the extra `test`

Both score the same 32 mixtures of two sources, 5 s at 16 kHz, in turns within one process that has
one thread; our compilation is printed but not in the ratio. With and without permutations.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before numpy and jax start

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import jax
import numpy as np
from mir_eval import separation

from opensep_jax.signal.bss_eval import bss_eval_sources
from opensep_jax.signal.stems import best_permutation, matched

SAMPLE_RATE_HZ = 16_000


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="benchmarks.bss_eval_speed", description=__doc__)
    flags.add_argument("--mixtures", type=int, default=32)
    flags.add_argument("--sources", type=int, default=2)
    flags.add_argument("--seconds", type=float, default=5.0)
    flags.add_argument("--rounds", type=int, default=3)
    return flags


def mixtures(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and references, float32 [B, S, T]: noise with a falling spectrum that leaks."""
    rng = np.random.default_rng(0)
    shape = (args.mixtures, args.sources, round(args.seconds * SAMPLE_RATE_HZ))
    spectrum = np.fft.rfft(rng.standard_normal(shape))
    references = np.fft.irfft(spectrum / (1 + np.arange(spectrum.shape[-1]) / 100), shape[-1])
    estimates = references + 0.3 * references[:, ::-1] + 0.003 * rng.standard_normal(shape)
    return estimates.astype(np.float32), references.astype(np.float32)


def by_mir_eval(estimates: np.ndarray, references: np.ndarray, permute: bool) -> np.ndarray:
    """SDR, SIR and SAR, [3, B, S], mixture by mixture."""
    pairs = zip(np.float64(references), np.float64(estimates), strict=True)
    return np.stack([separation.bss_eval_sources(*pair, permute)[:3] for pair in pairs], axis=1)


def by_us(estimates: np.ndarray, references: np.ndarray, permute: bool) -> np.ndarray:
    """SDR, SIR and SAR, [3, B, S], of the whole batch."""
    scores = bss_eval_sources(estimates, references, pairs=permute)
    if permute:
        order = best_permutation(scores.sir)
        scores = [matched(measure, order) for measure in scores]
    return np.stack(jax.device_get(scores))


def timed(score: Callable, *args: object) -> tuple[float, np.ndarray]:
    """Seconds of the CPU (other work on the machine does not count), and the result of a call."""
    start = time.process_time()
    result = score(*args)
    return time.process_time() - start, result


def main() -> int:
    """Alternates, and prints each figure and the ratios of the medians."""
    args = parser().parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # mir_eval's, on its separation module
    batch = mixtures(args)
    for permute in (False, True):
        print("with permutations" if permute else "without permutations")
        first_s, ours = timed(by_us, *batch, permute)
        seconds: dict[str, list[float]] = {"mir_eval": [], "ours": []}
        for _ in range(args.rounds):
            for name, score in (("mir_eval", by_mir_eval), ("ours", by_us)):
                second, result = timed(score, *batch, permute)
                seconds[name].append(second)
                print(f"  {name:8} {second:7.3f} s for {args.mixtures} mixtures", flush=True)
                if name == "mir_eval":
                    difference_db = np.abs(result - ours)[np.abs(result) < 60].max()
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        print(f"  compilation {first_s - medians['ours']:.1f} s, largest difference", end=" ")
        print(f"{difference_db:.1e} dB, ratio {medians['mir_eval'] / medians['ours']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
