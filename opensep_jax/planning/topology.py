"""Slices and nodes by name, as JAX devices."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping

import jax
from jax.experimental import topologies

from opensep_jax.chips import GPUS, TPUS, Chip

# libtpu asks a TPU machine's server about itself, unless told that there is none, and complains of
# what it does not find; the name of the topology is all that matters.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:4x8, v4:2x2x4, gpu:h100:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice or node.

    Attributes:
        name: as given.
        chip: of which it is made.
        chips: how many.
        devices: as JAX sees them, one to a chip; none of a GPU, for which nothing is compiled.
        chips_per_host: that one host feeds.
    """

    name: str
    chip: Chip
    chips: int
    devices: tuple[jax.Device, ...]
    chips_per_host: int


def describe_topology(name: str) -> Topology:
    """What a name such as `v5e:16x16` or `gpu:h100:8` stands for.

    Raises:
        ValueError: if there is no such thing, or no compiler for it.
    """
    gpu = re.fullmatch(r"gpu:([a-z0-9-]+):([1-9]\d*)", name)
    if gpu and gpu[1] in GPUS:
        chips = int(gpu[2])
        return Topology(name, GPUS[gpu[1]], chips, (), min(chips, 8))
    tpu = re.fullmatch(r"(v\d+[a-z]*):(\d+(?:x\d+)+)", name)
    if not tpu or tpu[1] not in TPUS:
        known = ", ".join([*TPUS, *(f"gpu:{gpu}" for gpu in GPUS)])
        raise ValueError(f"topology {name!r} is not known; known are {known}, as in {EXAMPLES}")
    devices = _tpu_devices(name, tpu[1])
    hosts = len({device.process_index for device in devices})
    return Topology(name, TPUS[tpu[1]], len(devices), devices, len(devices) // hosts)


def _tpu_devices(name: str, version: str) -> tuple[jax.Device, ...]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the compiler for TPUs is not here: pip install 'opensep-jax[tpu]'")
    for key, value in _NO_TPU.items():
        os.environ.setdefault(key, value)
    # Both cores of a v4 chip as one device, as a pod's default is.
    options: Mapping[str, str] = {"chip_config_name": "megacore"} if version == "v4" else {}
    try:
        described = topologies.get_topology_desc(name, platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"topology {name!r}: {why}; examples: {EXAMPLES}") from error
    return tuple(described.devices)
