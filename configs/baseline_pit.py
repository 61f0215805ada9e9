"""The baseline without text on the sound bank: permutation-invariant training on single clips.

Command: python -m opensep_jax.train --config configs/baseline_pit.py --workdir runs/pit
Expected: not yet measured.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """Changes of `demo`."""
    c = demo.get_config().unlock()
    c.task = "unconditional"
    c.unconditional.assignment = "pit"
    return c.lock()
