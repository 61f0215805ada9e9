"""What the devices could do and what they hold, beside what a run asks of them."""

from collections.abc import Sequence

import jax

# Dense bfloat16 FLOP/s of a device by `jax.Device.device_kind`. Sources: "System architecture" of
# each version in the Cloud TPU documentation; NVIDIA's data sheets, without sparsity.
PEAK_FLOPS_PER_S = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}


def step_flops(compiled: jax.stages.Compiled, accumulation: int) -> float | None:
    """Floating-point operations of one device in one step, as the compiler counts them.

    What is computed again to save memory (`model.remat`) counts, too.

    Args:
        compiled: the step.
        accumulation: parts of the batch; the compiler counts the body of that loop once, which is
            all but the update of the parameters.

    Returns:
        None where the compiler does not tell.
    """
    cost = compiled.cost_analysis()
    return cost["flops"] * accumulation if cost and cost.get("flops", 0) > 0 else None


def utilisation(flops: float | None, steps_per_s: float, device_kind: str) -> dict[str, float]:
    """`speed/mfu`, the share of the peak in bfloat16 that is used; empty where that is unknown.

    Args:
        flops: of one device in one step.
        steps_per_s: speed.
        device_kind: of the devices.
    """
    peak = PEAK_FLOPS_PER_S.get(device_kind)
    return {"speed/mfu": flops * steps_per_s / peak} if flops and peak else {}


def memory(devices: Sequence[jax.Device]) -> dict[str, float]:
    """GiB in use and at most so far on the fullest of these devices; empty where nobody counts."""
    counts = [count for count in (device.memory_stats() for device in devices) if count]
    names = {"memory/in_use_gib": "bytes_in_use", "memory/peak_gib": "peak_bytes_in_use"}
    return {
        name: max(count.get(key, 0) for count in counts) / 2**30
        for name, key in names.items()
        if any(key in count for count in counts)
    }
