"""The baseline without text on the sound bank: mixture-invariant training, no clip seen alone.

Command: python -m opensep_jax.train --config configs/baseline_mixit.py --workdir runs/mixit
Expected: 2.1 / 2.5 dB SI-SDR improvement (2 / 3 sources) after 600 steps on crops of 2 s
          (docs/results.md); not measured to its end.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """Changes of `demo`."""
    c = demo.get_config().unlock()
    c.task = "unconditional"
    c.unconditional.assignment = "mixit"
    c.mix.counts.update({"2": 0.0, "3": 0.0, "4": 1.0})  # two mixtures of two clips
    return c.lock()
