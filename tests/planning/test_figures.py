"""Arithmetic of reports, by hand."""

import pytest

from opensep_jax.chips import GPUS, TPUS, Chip, chip_of
from opensep_jax.planning.figures import (
    compiled_seconds,
    memory_figures,
    roofline_seconds,
    speed_figures,
)
from opensep_jax.planning.topology import describe_topology
from opensep_jax.planning.work import Product

CHIP = Chip(
    flops_per_s=1e12, memory_bytes=1000, memory_bytes_per_s=1e9, link_bytes_per_s=1e8,
    flops_per_cycle=1000, network_bytes_per_s=1e7,
)  # fmt: skip


def test_memory_and_the_largest_batch():
    parts = {"state": 300, "batch": 40, "temporary": 360, "program": 100}
    figures = memory_figures(parts, CHIP, batch_per_chip=4)
    assert figures["memory_per_chip_bytes"] == 800 and figures["fits"]
    assert figures["memory_headroom"] == pytest.approx(0.2)
    assert figures["largest_batch_per_chip_estimate"] == 6  # 600 bytes of room, 100 an example


def test_cycles_become_seconds_and_an_all_reduce_passes_the_links_twice():
    collectives = [
        {"kind": "all-reduce", "bytes": 3_000_000, "asynchronous": True, "enclosed_cycles": 9},
        {"kind": "all-gather", "bytes": 1_000_000, "asynchronous": False, "enclosed_cycles": 0},
    ]
    figures = compiled_seconds(2_000_000, collectives, CHIP)
    assert figures["clock_hz"] == 1e9 and figures["step_seconds_bound"] == 2e-3
    assert figures["link_seconds"] == pytest.approx((2 * 3e6 + 1e6) / 1e8)
    assert figures["collective_bytes"] == 4_000_000
    assert figures["collective_bytes_enclosing_compute"] == 3_000_000
    assert figures["large_collectives"] == collectives[:1]


def test_a_roofline_takes_the_slower_of_units_and_memory():
    work = [Product(flops=4e9, bytes=1e6), Product(flops=1e9, bytes=8e6)]  # 4 and 8 ms
    alone = roofline_seconds(work, 5e5, gradient_bytes=1e5, chips=1, chip=CHIP, chips_per_host=1)
    assert alone["step_seconds_bound"] == pytest.approx(13e-3) and not alone["link_seconds"]


@pytest.mark.parametrize("chips, milliseconds", [(1, 0), (8, 2), (16, 2 + 2.5), (64, 2 + 2.5)])
def test_beyond_a_node_an_eighth_of_the_gradients_passes_the_network(
    chips: int, milliseconds: float
):
    figures = roofline_seconds([], 0, 1e5, chips, CHIP, chips_per_host=min(chips, 8))
    assert figures["link_seconds"] == pytest.approx(milliseconds / 1e3)


def test_rates_and_costs():
    figures = speed_figures(
        seconds=0.1, link_seconds=0.025, model_flops=8e10 * 4, batch=32, clips_per_example=4.0,
        host_bytes_per_example=1000, chip=CHIP, chips=4, chips_per_host=2, price_per_chip_hour=9.0,
    )  # fmt: skip
    assert figures["mfu_bound"] == pytest.approx(0.8)
    assert figures["mfu_with_links"] == pytest.approx(0.64)
    assert figures["examples_per_second_per_chip_bound"] == pytest.approx(80)
    assert figures["clips_per_second_with_links"] == pytest.approx(1024)
    assert figures["host_clips_per_second"] == pytest.approx(640)
    assert figures["host_bytes_per_second"] == pytest.approx(160_000)
    assert figures["cost_per_million_clips"] == pytest.approx(0.01 / 1024 * 1e6)


def test_clocks_follow_from_peaks():
    clocks = {name: round(chip.clock_hz / 1e9, 2) for name, chip in TPUS.items()}
    assert clocks == {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75}


@pytest.mark.parametrize(
    "kinds, chip",
    [
        (("TPU v5e", "TPU v5 lite"), TPUS["v5e"]),
        (("TPU v5p", "TPU v5"), TPUS["v5p"]),
        (("TPU v6e", "TPU v6 lite"), TPUS["v6e"]),
        (("NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-40GB"), GPUS["a100-40gb"]),
        (("NVIDIA A100 80GB PCIe",), GPUS["a100-pcie"]),
        (("NVIDIA H100 NVL",), GPUS["h100-nvl"]),
    ],
)
def test_chips_are_known_by_all_their_names(kinds: tuple[str, ...], chip: Chip):
    assert {chip_of(kind) for kind in kinds} == {chip}


@pytest.mark.parametrize(
    "name", ["v5:2x2", "v5e", "v5e-16", "gpu:h100", "gpu:none:8", "gpu:h100:0"]
)
def test_an_unknown_topology_is_answered_with_examples(name):
    with pytest.raises(ValueError, match="v5e:16x16"):
        describe_topology(name)
