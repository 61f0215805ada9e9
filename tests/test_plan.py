"""The door that says what a run will take: a roofline here, real compilations where libtpu is."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs import debug
from opensep_jax import plan
from opensep_jax.forecast import records
from opensep_jax.planning.topology import describe_topology
from opensep_jax.text.cache import Cache

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module.*:DeprecationWarning")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """Runs the command; returns its exit code and all that it prints."""

    def run_with(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["plan", "--config", "configs/debug.py", *options])
        plan.FLAGS.unparse_flags()
        code = plan.cli()
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run_with


@pytest.fixture
def report(run: Callable, tmp_path: Path) -> dict:
    file = tmp_path / "report.json"
    options = ("--topology", "gpu:h100:4", "--price_per_chip_hour", "2.5", "--json", str(file))
    code, printed = run(*options, "--config.data.text_tokens=8")
    assert code == 0 and "roofline" in printed, printed
    return json.loads(file.read_text())


def test_a_roofline_of_a_gpu_node(report: dict):
    assert report["chips"] == 4 and report["batch_per_chip"] == 2 and report["fits"]
    assert report["collective_bytes"] == 4 * report["parameters"]  # float32 gradients
    # Parameters, two moments and the average, in float32, and a little.
    assert report["memory_per_chip_bytes"] == pytest.approx(16 * report["parameters"], rel=0.01)
    assert report["host_bytes_per_example"] == 2 * 4 * 4032 + 4 * (4 + 1 + 1)
    # The compiler's count, of the whole step, also has what is no product.
    assert 0.3 < report["flops_per_step"] / 4 / report["flops_per_chip_compiler"] < 1
    seconds = report["step_seconds_bound"]
    assert report["mfu_bound"] == pytest.approx(report["flops_per_step"] / 4 / seconds / 989e12)
    cost = 4 * 2.5 / 3600 / report["clips_per_second_with_links"] * 1e6
    assert report["cost_per_million_clips"] == pytest.approx(cost)


def test_other_tasks_and_scenes_are_planned_on_a_stand_in(tmp_path: Path):
    """On two nodes: each chip has 450 GB/s to its neighbours and 50 GB/s to the other node."""
    config, topology = debug.get_config(), describe_topology("gpu:h100:16")
    config.data.update({"text_tokens": 8, "scenes": True})
    config.task, config.train.batch = "unconditional", 16
    report = plan.main(config, topology, cache=Cache(tmp_path))
    assert report["fits"] and report["network"] == "debug"
    gradients = report["collective_bytes"]
    seconds = 2 * gradients / 450e9 + 2 * gradients / 8 / 50e9
    assert report["link_seconds"] == pytest.approx(seconds) and "nodes" in report["method"]


@pytest.mark.parametrize("folder", ["gs://bucket/records", "one, two"])
def test_folders_are_read_as_they_are_given(folder: str):
    config = debug.get_config()
    config.data.folder = folder
    with records(config, 768) as found:
        assert found == folder


@pytest.mark.parametrize(
    "options, message",
    [
        (("--topology", "v5x:2x2"), "v5e:16x16"),
        (("--topology", "gpu:h100:3"), "train.batch=8 is not divisible by 3 chips"),
        (("--topology", "gpu:h100:4", "--search"), "nothing is compiled for GPUs"),
        (("--config.model.width=3",), "width"),
        (("more",), "unexpected arguments: more"),
    ],
)
def test_what_cannot_be_planned_is_said(run: Callable, options: tuple, message: str):
    code, printed = run(*options)
    assert code == 2 and message in printed


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_the_compiler_the_extra_is_named():
    with pytest.raises(ValueError, match=r"pip install 'opensep-jax\[tpu\]'"):
        describe_topology("v5e:2x2")


@pytest.mark.aot
def test_the_real_step_compiles_for_a_slice_and_is_remembered(tmp_path: Path):
    pytest.importorskip("libtpu")
    config, cache = debug.get_config(), Cache(tmp_path)
    config.model.size, config.data.text_tokens = "tiny", 8
    topology = describe_topology("v5e:2x2")
    report = plan.main(config, topology, price_per_chip_hour=1.0, cache=cache)
    assert report["fits"] and 0.9 < report["memory_headroom"] < 1
    assert report["largest_batch_per_chip_estimate"] > 2
    # Pure data parallel: the gradients are nearly all that goes between chips.
    gradients = report["collective_bytes_by_kind"]["all-reduce"]["bytes"]
    assert 2 * report["parameters"] <= gradients < 4.2 * report["parameters"]
    assert gradients > 0.9 * report["collective_bytes"]
    assert 0 < report["mfu_bound"] < 1 and report["cycles_per_step"] > 10_000
    again = plan.main(config, topology, price_per_chip_hour=2.0, cache=cache)
    assert again["compile_seconds"] == report["compile_seconds"]
    cost = report["cost_per_million_clips"]
    assert again["cost_per_million_clips"] == pytest.approx(2 * cost)
    with pytest.raises(ValueError, match="not divisible"):
        config.train.batch = 6
        plan.main(config, topology, cache=cache)
