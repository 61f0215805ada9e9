"""Whether names mean the same source, for scores; a rule on words, no network.

Source: ours. Two names match when their content lemmas overlap by Dice > 0.5, or when those of the
one that was said are a subset of the true one's.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from opensep_jax.text.clauses import content


def match_names(said: Sequence[str], true: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Pairs of said and true names, each used once, as many and as similar as possible.

    Args:
        said: names that were found.
        true: the names of each true source, of which the most similar counts.

    Returns:
        Indices (said, true).
    """
    score_ST = np.array(
        [[max(_similarity(content(s), content(name)) for name in names) for names in true]
         for s in said]
    ).reshape(len(said), len(true))  # fmt: skip
    rows, columns = linear_sum_assignment(-score_ST)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if score_ST[i, j] > 0]


def means(said: str, name: str) -> bool:
    """Whether a text means the same source as a name: "dog" means "dog barking"."""
    return bool(match_names([said], [[name]]))


def _similarity(said: frozenset[str], true: frozenset[str]) -> float:
    """More than 1 where names match, else 0."""
    dice = 2 * len(said & true) / max(1, len(said) + len(true))
    return 1 + dice if dice > 0.5 or (said and said <= true) else 0.0
