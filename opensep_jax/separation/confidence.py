"""How far a stem can be trusted, as far as that can be told without the true sources.

Three signs, each in [0, 1]: there is something in the stem, other stems do not hold the same, and
(where a captioner listens) the stem sounds like what was asked for. Source: ours.
"""

import math

import numpy as np

from opensep_jax.separation.engine import Processed

_HALF_SHARE = 0.05  # of the energy, where the first sign is a half


class Evidence:
    """What is collected of the stems of a signal while they are made, in constant memory.

    Attributes:
        loudest_ST: for each stem its loudest window, mono, at the network's rate; None before any.
    """

    def __init__(self, count: int):
        """For `count` stems."""
        self._products_SS = np.zeros((count, count))
        self._peak_S = np.zeros(count)
        self.loudest_ST: list[np.ndarray | None] = [None] * count

    def add(self, processed: Processed) -> None:
        """Takes what the network made of a window."""
        self._products_SS += processed.products_SS
        energy_S = np.diag(processed.products_SS)
        for i in np.flatnonzero(energy_S > self._peak_S):
            mono_T = processed.stems_SCT[i].mean(0, dtype=np.float64).astype(np.float32)
            self._peak_S[i], self.loudest_ST[i] = energy_S[i], mono_T

    def parts(self) -> list[np.ndarray]:
        """The loudest windows, a moment of silence where there is none."""
        return [np.zeros(1, np.float32) if part is None else part for part in self.loudest_ST]

    def overlaps(self) -> list[float]:
        """For each stem the largest cosine of its magnitude spectrogram with another stem's.

        In [0, 1], over all windows; 0 for a silent or an only stem.
        """
        energy_S = np.diag(self._products_SS)
        norm_SS = np.sqrt(np.outer(energy_S, energy_S))
        cosine_SS = np.divide(
            self._products_SS, norm_SS, out=np.zeros_like(norm_SS), where=norm_SS > 0
        )
        np.fill_diagonal(cosine_SS, 0.0)
        return [float(x) for x in np.clip(cosine_SS.max(1, initial=0.0), 0, 1)]


def confidence(energy_share: float, overlap: float, agreement: float | None) -> float:
    """One figure in [0, 1] of the signs of a stem: s / (s + 0.05) * sqrt((1 - overlap) agreement).

    Energy alone tells best whether a source is there, but the loud ones are not the cleaner ones;
    the root keeps most of the former and some of the latter (`benchmarks/confidence.py`).

    Args:
        energy_share: energy s of the stem over that of all stems and the residual.
        overlap: see `Evidence.overlaps`.
        agreement: similarity of what a captioner hears in the stem to what was asked for, cosine;
            None, as good as 1, where nobody listens.
    """
    likeness = 1.0 if agreement is None else min(1.0, max(0.0, agreement))
    return energy_share / (energy_share + _HALF_SHARE) * math.sqrt((1 - overlap) * likeness)
