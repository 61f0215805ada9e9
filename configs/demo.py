"""The shipped separator: `tiny` on the sound bank, on two CPU cores.

Command: python -m opensep_jax.train --config configs/demo.py --workdir runs/demo
         with the records of
         python -m opensep_jax.prepare --dataset folder --root SOUNDBANK --out runs/soundbank
Expected: see opensep_jax/assets/demo/README.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Changes of `base`."""
    c = base.get_config().unlock()
    c.stft.n_fft_samples = 1024  # 513 bins: 128 + 3 * 128, and Nyquist
    c.model.size = "tiny"
    c.model.dtype = "float32"  # CPUs gain nothing from bfloat16
    c.data.folder = "runs/soundbank"
    c.data.crop_s = 3.072  # 192 frames
    c.data.text_tokens = 64
    c.mix.counts.update({"2": 0.45, "3": 0.35, "4": 0.2})
    c.mix.targets = 2
    c.mix.speed = 0.06
    c.mix.eq_db = 2.0
    c.optim.learning_rate = 1.5e-3
    c.optim.warmup_steps = 100
    c.optim.ema_decay = 0.999
    c.train.steps = 7000
    c.train.batch = 8
    c.train.log_every_steps = 20
    c.train.save_every_steps = 250
    c.eval.every_steps = 500
    c.eval.mixtures = 48
    return c.lock()
