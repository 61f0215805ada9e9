"""The separator on VGGSound: clips of 309 classes, named by their label.

Command: python -m opensep_jax.train --config configs/vggsound.py --workdir runs/vggsound_base
         with the records of
         python -m opensep_jax.prepare --dataset vggsound --root VGGSOUND --out runs/vggsound
Expected: not yet measured (the data set has to be collected by everyone, see
docs/data/vggsound.md).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Changes of `base`."""
    c = base.get_config().unlock()
    c.data.folder = "runs/vggsound"
    c.data.wordings.update({"caption": 0.0, "label": 0.3, "paraphrase": 0.3, "description": 0.4})
    c.eval.wording = "label"
    c.train.batch = 64  # for one node of 8 devices; `plan` says what more of them take
    return c.lock()
