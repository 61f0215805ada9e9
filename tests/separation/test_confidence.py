"""Signs of what a stem is worth, by hand."""

import numpy as np
import pytest

from opensep_jax.separation.confidence import Evidence, confidence
from opensep_jax.separation.engine import Processed


def test_overlap_is_the_cosine_of_magnitudes():
    evidence = Evidence(3)
    products = np.array([[4.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    stems_SCT = np.stack([np.full((2, 5), level, np.float32) for level in (1, 2, 0)])
    evidence.add(Processed(stems_SCT, products))
    evidence.add(Processed(3 * stems_SCT, products / 2))  # softer, whatever its samples are
    assert evidence.overlaps() == [0.5, 0.5, 0.0]
    np.testing.assert_array_equal(evidence.loudest_ST[1], np.full(5, 2))
    assert evidence.loudest_ST[2] is None
    assert Evidence(1).overlaps() == [0.0] and Evidence(0).overlaps() == []


@pytest.mark.parametrize(
    "share, overlap, agreement, want",
    [
        (0.05, 0.0, None, 0.5),
        (0.05, 0.5, 0.5, 0.25),
        (0.45, 0.75, None, 0.45),
        (0.0, 0.0, 1.0, 0.0),
        (0.5, 1.0, None, 0.0),
        (0.5, 0.0, -0.2, 0.0),
    ],
)
def test_confidence_by_hand(share: float, overlap: float, agreement: float | None, want: float):
    assert confidence(share, overlap, agreement) == pytest.approx(want)
