"""The separator on MUSIC or MUSIC-21: solos of instruments, named by their label.

Command: python -m opensep_jax.train --config configs/music.py --workdir runs/music_base
         with the records of
         python -m opensep_jax.prepare --dataset music --root MUSIC --out runs/music
Expected: not yet measured (the data set has to be collected by everyone, see docs/data/music.md).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Changes of `base`."""
    c = base.get_config().unlock()
    c.data.folder = "runs/music"
    c.data.wordings.update({"caption": 0.0, "label": 0.3, "paraphrase": 0.3, "description": 0.4})
    c.eval.wording = "label"
    c.train.steps = 100_000
    c.train.batch = 64  # for one node of 8 devices; `plan` says what more of them take
    return c.lock()
