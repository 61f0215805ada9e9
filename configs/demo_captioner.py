"""The shipped captioner: `tiny` on the sound bank, on one CPU core.

Command: python -m opensep_jax.train --config configs/demo_captioner.py --workdir runs/captioner
         with the records of
         python -m opensep_jax.prepare --dataset folder --root SOUNDBANK --out runs/soundbank
Expected: see opensep_jax/assets/demo_captioner/README.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Changes of `base`."""
    c = base.get_config().unlock()
    c.task = "captioner"
    c.captioner.tag_weight = 20.0
    c.data.folder = "runs/soundbank"
    c.data.crop_s = 5.0
    c.mix.speed = 0.12
    c.mix.eq_db = 3.0
    c.optim.learning_rate = 1.5e-3
    c.optim.warmup_steps = 200
    c.optim.b2 = 0.99
    c.optim.weight_decay = 0.05
    c.optim.ema_decay = 0.998
    c.train.steps = 6500
    c.train.batch = 32
    c.train.log_every_steps = 20
    c.train.save_every_steps = 250
    c.eval.every_steps = 500
    c.eval.sources = (1, 2, 3)
    c.eval.mixtures = 120
    c.eval.batch = 24
    c.eval.panels = 2
    return c.lock()
