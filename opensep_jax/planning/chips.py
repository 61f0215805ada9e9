"""Chips by name: what they can do, what they hold, and slices of them as JAX devices."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; all figures are those of its data sheet.

    Attributes:
        flops_per_s: peak in bfloat16, dense.
        memory_bytes: of high-bandwidth memory.
        memory_bytes_per_s: its bandwidth.
        link_bytes_per_s: what the chip sends to its neighbours at a time, over all links.
        flops_per_cycle: of all matrix units in bfloat16; None where no compiler estimates cycles.
    """

    flops_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    flops_per_cycle: int | None = None

    @property
    def clock_hz(self) -> float:
        """Inferred: the one at which the matrix units reach the peak."""
        return self.flops_per_s / self.flops_per_cycle


# Cloud TPU documentation, "System architecture" of each version (interchip interconnect: what it
# sends). FLOPs of a cycle: from the matrix units; at these the compiler's estimate for a product of
# 8192^3 is 88 % (v5e), 90 % (v4, v5p) and 70 % (v6e) of the peak.
TPUS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 2 * 4 * 2 * 128**2),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 4 * 2 * 128**2),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 2 * 4 * 2 * 128**2),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 448e9, 4 * 2 * 256**2),
}
# NVIDIA's data sheets: SXM versions, dense; NVLink is given in both directions, half of it is sent.
GPUS = {
    "a100-40gb": Chip(312e12, 40e9, 1555e9, 300e9),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9),
}
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
