"""Fixtures, and the devices that all tests see: eight on one CPU."""

import gc
import importlib.metadata
import os

# Before jax is imported by anything.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Most of the time goes into compiling: without optimisations the suite takes half as long.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
XLA_FLAGS = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if importlib.metadata.version("jax").startswith("0.10."):  # later ones do not know it
    XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(XLA_FLAGS)

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.tiny_dataset import SAMPLE_RATE_HZ, prepare_folder, write_tiny_sounds
from tests.tiny_text_encoder import write_tiny_bert


def pytest_configure() -> None:
    """Stops where jax did not get its eight devices: something imported it too early."""
    if jax.device_count() != 8:
        raise pytest.UsageError(f"tests need 8 CPU devices, jax has {jax.devices()}")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Takes back what a door does to the root logger: its handler ends with the test's capture."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled programs of this session are found again."""
    return tmp_path_factory.mktemp("compile_cache")


@pytest.fixture(scope="module")
def compile_once(compile_cache: Path) -> Iterator[None]:
    """Programs that several tests of these modules compile come from the disk after the first."""
    settings = {
        "jax_compilation_cache_dir": str(compile_cache),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; skips where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system: {error}")
    yield folder
    gc.collect()  # what a failed write has left behind belongs to this test, not to a later one
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def sine_T() -> np.ndarray:
    """A second of 440 Hz at 16 kHz, float32 [T], peak 0.5."""
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    return (0.5 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)


@pytest.fixture
def noise_T() -> np.ndarray:
    """A second of white noise at 16 kHz, float32 [T], RMS 0.1."""
    return (0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ)).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 8 labels x 4 short clips with `manifest.csv` and `families.json`; read only."""
    return write_tiny_sounds(tmp_path_factory.mktemp("tiny_sounds"))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a text encoder of random weights, 16 channels; read only."""
    return write_tiny_bert(tmp_path_factory.mktemp("tiny_encoder"))


@pytest.fixture(scope="session")
def tiny_dataset(
    tiny_sounds: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`tiny_sounds` prepared: 24 clips in split `train`, 8 in `val`; read only."""
    out = tmp_path_factory.mktemp("tiny_dataset")
    assert prepare_folder(tiny_sounds, out, tiny_encoder) == 0
    return out
