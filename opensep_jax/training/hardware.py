"""What the devices could do and what they hold, beside what a run asks of them."""

from collections.abc import Sequence

import jax

from opensep_jax.chips import chip_of


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
    chip = chip_of(device_kind)
    return {"speed/mfu": flops * steps_per_s / chip.flops_per_s} if flops and chip else {}


def memory(devices: Sequence[jax.Device]) -> dict[str, float]:
    """GiB in use and at most so far on the fullest of these devices; empty where nobody counts."""
    counts = [count for count in (device.memory_stats() for device in devices) if count]
    names = {"memory/in_use_gib": "bytes_in_use", "memory/peak_gib": "peak_bytes_in_use"}
    return {
        name: max(count.get(key, 0) for count in counts) / 2**30
        for name, key in names.items()
        if any(key in count for count in counts)
    }
