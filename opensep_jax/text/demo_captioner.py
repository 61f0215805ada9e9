"""The embedded captioner: small, trained by this project from scratch, no download.

It names the sounds of its training data and no others: whatever it hears becomes the nearest of
them, and it never says that it does not know.
"""

import functools
import os

import jax
import numpy as np

from opensep_jax.checkpoint import shipped
from opensep_jax.text.listener import Listener, abstract_params, build_listener, caption


class DemoCaptioner:
    """Captions of windows of one length; a backend of `text.caption`.

    Attributes:
        id: "demo" and a content hash of the weights.
        sample_rate_hz: Of the windows.
        window_s: Their length.
        padding: A shorter recording is heard again and again.
    """

    padding = "repeat"

    def __init__(self, config: dict, listener: Listener, params: dict):
        """Takes what `load_captioner` gives."""
        self.id = f"demo-{shipped.params_id(params)}"
        self.sample_rate_hz, self.window_s = config["sample_rate_hz"], config["window_s"]
        self._caption = functools.partial(caption, listener, jax.device_put(params))

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        """Captions float32 [B, window], mono, any gain; compiled once per B.

        Raises:
            ValueError: The windows are of another length.
        """
        samples = round(self.window_s * self.sample_rate_hz)
        if waves_BT.ndim != 2 or waves_BT.shape[1] != samples:
            raise ValueError(f"need windows [B, {samples}], got shape {waves_BT.shape}")
        return self._caption(waves_BT)[0]


def load(argument: str) -> DemoCaptioner:
    """The shipped captioner, or one of a run of `train` (its workdir or export) where one is named.

    Raises:
        ValueError: There is no such checkpoint, or it is damaged.
    """
    return DemoCaptioner(*load_captioner(argument or "demo"))


def load_captioner(name: str | os.PathLike) -> tuple[dict, Listener, dict]:
    """Config, captioner and parameters of a checkpoint; see `checkpoint.shipped.load`."""
    config, params = shipped.load(
        name, lambda config: abstract_params(_build(config), config["window_s"]), "captioner"
    )
    return config, _build(config), params


def _build(config: dict) -> Listener:
    return build_listener(
        **config["model"], **config["mel"], sample_rate_hz=config["sample_rate_hz"],
        clauses=config["clauses"], max_sources=config["max_sources"],
    )  # fmt: skip
