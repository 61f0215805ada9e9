"""The smallest network, for tests and for a first look at the loop (a minute on a laptop).

Command: python -m opensep_jax.train --config configs/debug.py --workdir runs/debug \
             --config.data.folder=PREPARED
Expected: the loss falls; nothing worth hearing.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Changes of `base`."""
    c = base.get_config().unlock()
    c.stft.n_fft_samples = 128
    c.stft.hop_samples = 64
    c.model.size = "debug"
    c.model.dtype = "float32"
    c.data.crop_s = 0.256
    c.mix.targets = 3
    c.loss.negative_snr = 0.1  # both losses, and a sum above zero: so relative differences between
    c.loss.magnitude_l1 = 1.0  # runs say something
    c.optim.warmup_steps = 2
    c.train.steps = 20
    c.train.batch = 8
    c.train.log_every_steps = 1
    c.train.save_every_steps = 5
    c.eval.every_steps = 10
    c.eval.mixtures = 8
    c.eval.seconds = 0.5
    return c.lock()
