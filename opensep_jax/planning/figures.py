"""From what a compiler says of a step to what a run will take; plain arithmetic."""

from collections.abc import Mapping, Sequence

from opensep_jax.chips import Chip
from opensep_jax.planning.work import Product

# How often a ring sends the bytes of a collective over a chip's links.
_PASSES = {"all-reduce": 2}
LARGE_BYTES = 2**20  # from here on a collective is named by itself


def memory_figures(memory: Mapping[str, int], chip: Chip, batch_per_chip: int) -> dict:
    """What a chip holds at the worst moment, and how many examples it has room for.

    Args:
        memory: bytes by part: `state` (parameters, optimiser, average, text table), `batch`,
            `program`, and `temporary`, which is taken to grow with the batch.
        chip: which.
        batch_per_chip: examples of a chip in a step.

    Returns:
        Keys of the report; `largest_batch_per_chip_estimate` is a straight line through one point.
    """
    total = sum(memory.values())
    an_example = (memory["batch"] + memory["temporary"]) / batch_per_chip
    room = chip.memory_bytes - memory["state"] - memory["program"]
    return {
        "memory_per_chip_bytes": total,
        "memory_parts_bytes": dict(memory),
        "memory_limit_bytes": chip.memory_bytes,
        "memory_headroom": 1 - total / chip.memory_bytes,
        "fits": total <= chip.memory_bytes,
        "largest_batch_per_chip_estimate": max(0, int(room / an_example)),
    }


def compiled_seconds(cycles: int, collectives: Sequence[Mapping], chip: Chip) -> dict:
    """Time of a step out of the compiler's cycles, and what the links take besides."""
    link_bytes = sum(_PASSES.get(one["kind"], 1) * one["bytes"] for one in collectives)
    enclosing = [one for one in collectives if one["enclosed_cycles"]]
    return {
        "cycles_per_step": cycles,
        "clock_hz": chip.clock_hz,
        "step_seconds_bound": cycles / chip.clock_hz,
        "collectives": len(collectives),
        "collective_bytes": sum(one["bytes"] for one in collectives),
        "collective_bytes_by_kind": _by_kind(collectives),
        "collective_bytes_enclosing_compute": sum(one["bytes"] for one in enclosing),
        "large_collectives": [one for one in collectives if one["bytes"] >= LARGE_BYTES],
        "link_seconds": link_bytes / chip.link_bytes_per_s,
    }


def roofline_seconds(
    work: Sequence[Product],
    state_bytes: float,
    gradient_bytes: float,
    chips: int,
    chip: Chip,
    chips_per_host: int,
) -> dict:
    """Time of a step if every product reaches the peak or the memory's bandwidth, and no more.

    What lies between the products is taken to be fused with them. Beyond one node the gradients are
    summed within each over its links, then each chip's share of them over the network.

    Args:
        work: products of one chip's step, forward and backward.
        state_bytes: that the update reads and writes.
        gradient_bytes: that all chips sum.
        chips: how many.
        chip: which.
        chips_per_host: of a node.
    """
    products = sum(
        max(one.flops / chip.flops_per_s, one.bytes / chip.memory_bytes_per_s) for one in work
    )
    passes = _PASSES["all-reduce"] if chips > 1 else 0
    link_seconds = passes * gradient_bytes / chip.link_bytes_per_s
    if chips > chips_per_host:
        share = gradient_bytes / chips_per_host
        link_seconds += passes * share / chip.network_bytes_per_s
    return {
        "step_seconds_bound": products + 2 * state_bytes / chip.memory_bytes_per_s,
        "collective_bytes": gradient_bytes if chips > 1 else 0,
        "link_seconds": link_seconds,
    }


def speed_figures(
    *,
    seconds: float,
    link_seconds: float,
    model_flops: float,
    batch: int,
    clips_per_example: float,
    host_bytes_per_example: float,
    chip: Chip,
    chips: int,
    chips_per_host: int,
    price_per_chip_hour: float | None,
) -> dict:
    """Rates of a step that takes `seconds`; no host, link or pause is part of a `_bound`.

    Args:
        seconds: of a step, compute only.
        link_seconds: that the exchange between chips takes where nothing hides it.
        model_flops: of a step on all chips.
        batch: examples of a step on all chips.
        clips_per_example: that are mixed.
        host_bytes_per_example: that hosts send to the chips.
        chip: which.
        chips: how many.
        chips_per_host: that one host feeds.
        price_per_chip_hour: in any currency; None leaves the costs out.
    """
    a_chip = batch / chips / seconds
    with_links = seconds + link_seconds
    clips_per_s = batch * clips_per_example / with_links
    host_rate = batch / chips * chips_per_host / seconds
    figures = {
        "mfu_bound": model_flops / chips / seconds / chip.flops_per_s,
        "mfu_with_links": model_flops / chips / with_links / chip.flops_per_s,
        "step_seconds_with_links": with_links,
        "examples_per_second_per_chip_bound": a_chip,
        "examples_per_second_per_chip_with_links": batch / chips / with_links,
        "clips_per_second_with_links": clips_per_s,
        "host_clips_per_second": host_rate * clips_per_example,
        "host_bytes_per_second": host_rate * host_bytes_per_example,
    }
    if price_per_chip_hour is not None:
        cost_per_s = price_per_chip_hour * chips / 3600
        figures["price_per_chip_hour"] = price_per_chip_hour
        figures["cost_per_million_clips"] = 1e6 * cost_per_s / clips_per_s
    return figures


def _by_kind(collectives: Sequence[Mapping]) -> dict[str, dict[str, int]]:
    """Count and bytes of each kind, the most bytes first."""
    kinds: dict[str, dict[str, int]] = {}
    for one in collectives:
        total = kinds.setdefault(one["kind"], {"count": 0, "bytes": 0})
        total["count"] += 1
        total["bytes"] += one["bytes"]
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["bytes"]))
