"""The separator on AudioCaps: clips of several sources, which the parser finds in their captions.

Command: python -m opensep_jax.train --config configs/audiocaps.py --workdir runs/audiocaps_base
         with the records of
         python -m opensep_jax.prepare --dataset audiocaps --root AUDIOCAPS --out runs/audiocaps
Expected: not yet measured (the data set has to be collected by everyone, see
docs/data/audiocaps.md).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Changes of `base`."""
    c = base.get_config().unlock()
    c.data.folder = "runs/audiocaps"
    c.data.balance_labels = False  # thousands of names, and common ones are said in many ways
    c.data.max_names = 4  # sources of a clip
    c.data.text_tokens = 64  # four names of two clips make 512 # paper (RoBERTa's context)
    c.eval.wording = "label"
    c.train.batch = 64  # for one node of 8 devices; `plan` says what more of them take
    return c.lock()
