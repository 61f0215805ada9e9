"""Chips by name: what they can do and what they hold."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; all figures are those of its data sheet.

    Attributes:
        flops_per_s: peak in bfloat16, dense.
        memory_bytes: of high-bandwidth memory.
        memory_bytes_per_s: its bandwidth.
        link_bytes_per_s: what the chip sends to its neighbours at a time, over all links.
        flops_per_cycle: of all matrix units in bfloat16; None where no compiler estimates cycles.
        network_bytes_per_s: its share of what a node sends to others; None where there is no node.
    """

    flops_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    flops_per_cycle: int | None = None
    network_bytes_per_s: float | None = None

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
# NVIDIA's data sheets, dense; a link of both directions counts half, since half of it is sent.
# Network: that of NVIDIA's own nodes of 8, whose user guides list an adapter for each GPU: DGX A100
# ConnectX-6 of 200 Gb/s, DGX H100 and H200 ConnectX-7 of 400 Gb/s. Rented nodes may have less.
_200G, _400G = 200e9 / 8, 400e9 / 8
GPUS = {
    "a100-40gb": Chip(312e12, 40e9, 1555e9, 300e9, network_bytes_per_s=_200G),
    "a100-pcie": Chip(312e12, 80e9, 1935e9, 300e9, network_bytes_per_s=_200G),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, network_bytes_per_s=_200G),
    "h100-pcie": Chip(756e12, 80e9, 2000e9, 300e9, network_bytes_per_s=_400G),
    "h100-nvl": Chip(835e12, 94e9, 3900e9, 300e9, network_bytes_per_s=_400G),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, network_bytes_per_s=_400G),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, network_bytes_per_s=_400G),
}
_KINDS = {  # what `jax.Device.device_kind` calls them; both names that JAX knows of a TPU
    "TPU v4": TPUS["v4"],
    "TPU v5 lite": TPUS["v5e"],
    "TPU v5e": TPUS["v5e"],
    "TPU v5": TPUS["v5p"],
    "TPU v5p": TPUS["v5p"],
    "TPU v6 lite": TPUS["v6e"],
    "TPU v6e": TPUS["v6e"],
    "NVIDIA A100-PCIE-40GB": GPUS["a100-40gb"],
    "NVIDIA A100-SXM4-40GB": GPUS["a100-40gb"],
    "NVIDIA A100 80GB PCIe": GPUS["a100-pcie"],
    "NVIDIA A100-SXM4-80GB": GPUS["a100"],
    "NVIDIA H100 PCIe": GPUS["h100-pcie"],
    "NVIDIA H100 NVL": GPUS["h100-nvl"],
    "NVIDIA H100 80GB HBM3": GPUS["h100"],
    "NVIDIA H200": GPUS["h200"],
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that `jax.Device.device_kind` names; None where it is not known here."""
    return _KINDS.get(device_kind)
