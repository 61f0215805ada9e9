"""The predecessor's network and loss on OpenSep's mixtures, the closest that both come together.

Command: python -m opensep_jax.train --config configs/paper.py --workdir runs/paper \
             --config.data.folder=PREPARED
         from its public weights, read by `opensep_jax.import_predecessor`, with
             --config.train.init_from=FOLDER
Expected: not yet measured.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Changes of `base`."""
    c = base.get_config().unlock()
    c.window_s = 8.176  # 512 frames # BiModal repo
    c.model.size = "paper"
    c.data.text_tokens = 77  # BiModal repo
    c.loss.negative_snr = 0.0
    c.loss.magnitude_l1 = 5.0  # BiModal repo
    c.optim.learning_rate = 1e-4  # BiModal repo
    c.optim.b2 = 0.999  # BiModal repo
    c.train.batch = 16  # BiModal repo
    c.eval.seconds = 8.176
    return c.lock()
