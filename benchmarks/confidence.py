"""Whether the confidence of a stem tells anything: of sources that are there and that are not.

    python -m benchmarks.confidence --data SOUNDS [--mixtures 40 --seconds 5]

SOUNDS is a folder with `manifest.csv` (and `families.json`). Queries each mixture of two labels,
one of them up to 10 dB softer, for these and for a third that is not in it. Prints, for every sign
and the figure made of them, how often a present source has more of it than an absent one (area
under the ROC curve), and its rank correlation with the SI-SDR improvement of the present ones.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr

from benchmarks.seams import mixtures
from opensep_jax.api import Separator
from opensep_jax.signal.metrics import si_sdr


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="benchmarks.confidence", description=__doc__)
    flags.add_argument("--data", type=Path, required=True)
    flags.add_argument("--checkpoint", default="demo")
    flags.add_argument("--mixtures", type=int, default=40)
    flags.add_argument("--seconds", type=float, default=5.0)
    return flags


def main() -> int:
    """Prints a line for each sign."""
    args = parser().parse_args()
    separator = Separator.from_pretrained(args.checkpoint)
    rate_hz = separator.engine.net.sample_rate_hz
    present, absent, quality, rng = [], [], [], np.random.default_rng(1)
    for captions, sources_ST in mixtures(args.data, args.mixtures, args.seconds, rate_hz, 3):
        sources_ST = sources_ST[:2]  # the third is asked for and not there
        sources_ST[1] *= 10 ** (rng.uniform(-10, 0) / 20)
        mix_T = sources_ST.sum(0)
        separation = separator.separate(mix_T, rate_hz, captions)
        *there, missing = separation.sources
        present += there
        absent.append(missing)
        stems_ST = separation.stems[:2, 0]
        quality += list(np.asarray(si_sdr(stems_ST, sources_ST) - si_sdr(mix_T[None], sources_ST)))
    signs = {
        "energy share": lambda source: source.energy_share,
        "1 - overlap": lambda source: 1 - source.overlap,
        "confidence": lambda source: source.confidence,
    }
    for name, sign in signs.items():
        yes, no = list(map(sign, present)), list(map(sign, absent))
        area = mannwhitneyu(yes, no).statistic / (len(yes) * len(no))
        rank = spearmanr(yes, quality).statistic
        print(
            f"{name:13} present {np.median(yes):.2f}, absent {np.median(no):.2f} (medians); area "
            f"{area:.3f}; rank correlation with SI-SDR improvement {rank:+.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
