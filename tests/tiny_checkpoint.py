"""An exported separator of random weights with a text encoder, small enough for offline tests."""

import functools
import os
import tempfile
from pathlib import Path

import jax
import numpy as np

from opensep_jax import __version__
from opensep_jax.checkpoint import shipped
from opensep_jax.separator import abstract_params, net_of
from opensep_jax.text.embed import load_text_encoder
from tests.tiny_text_encoder import write_tiny_bert

SAMPLE_RATE_HZ = 16000


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Writes `folder/checkpoint` and `folder/encoder`; returns the former."""
    encoder = load_text_encoder(str(write_tiny_bert(folder / "encoder")))
    config = {
        "schema": 1,
        "task": "separator",
        "model": {"size": "debug", "dtype": "float32"},
        "stft": {"n_fft_samples": 128, "hop_samples": 64},
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "text_encoder": {
            "name": str(folder / "encoder"),
            "id": encoder.id,
            "width": encoder.width,
            "max_tokens": encoder.max_tokens,
        },
        "window_s": 0.5,
        "steps": 7,
        "version": __version__,
    }
    shipped.export(folder / "checkpoint", random_params(config, seed), config)
    return folder / "checkpoint"


def random_params(config: dict, seed: int = 0) -> dict:
    """Parameters that draw lively masks, in the shapes of the config's network."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        mean = {"scale": 1.0, "bias": 0.0}.get(name, 0.0)
        return (mean + 0.4 * rng.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(config))


def shapes_of(config: dict) -> dict:
    """Shapes of the parameters of the config's network."""
    return abstract_params(net_of(config), config["text_encoder"]["width"])


@functools.cache
def shared_checkpoint() -> Path:
    """One such checkpoint for all tests of a process; it is removed with the process."""
    folder = tempfile.TemporaryDirectory(prefix="opensep-tests-")
    _KEEP.append(folder)
    return write_tiny_checkpoint(Path(os.path.realpath(folder.name)))


_KEEP: list[tempfile.TemporaryDirectory] = []
