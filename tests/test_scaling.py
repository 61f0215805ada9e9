"""What a data-parallel step sends does not grow with the number of devices."""

import math
import re
from collections import Counter
from pathlib import Path

import jax
import pytest

from opensep_jax import sharding
from tests import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compile_once")]

# An instruction such as `%all-reduce.3 = (f32[8,16]{1,0}, f32[]) all-reduce(%a, %b), ...`
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"([a-z]+[0-9]+|pred)\[([0-9,]*)\]")
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}


def _collectives(hlo: str) -> Counter[str]:
    """Bytes of the results of each kind of collective operation."""
    found: Counter[str] = Counter()
    for results, kind in _COLLECTIVE.findall(hlo):
        for dtype, shape in _ARRAY.findall(results):
            found[kind] += _BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
    return found


def _of_step(folder: Path, devices: int) -> tuple[Counter[str], int]:
    """Collectives of the compiled training step at a mixture per device; bytes of parameters."""
    run, step_fn = tiny_run.stepper(folder, data=devices, train__batch=devices)
    state, batch = tiny_run.first_state(run, folder), next(run.batches(0))
    batch = sharding.shard_batch(batch, run.mesh)
    hlo = step_fn.lower(state, batch, run.constants, run.key).compile().as_text()
    return _collectives(hlo), sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))


def test_bytes_of_collectives_do_not_grow_with_the_devices(tiny_dataset: Path):
    few, params = _of_step(tiny_dataset, 2)
    many, _ = _of_step(tiny_dataset, 8)
    # The gradients, each once, and a few sums of metrics.
    assert few["all-reduce"] == pytest.approx(params, rel=0.01)
    assert many["all-reduce"] == few["all-reduce"]
    # Of each mixture 24 bytes more are sent: in which order its targets were drawn.
    for kind in (few | many).keys() - {"all-reduce"}:
        assert many[kind] - few[kind] <= 6 * 24, (kind, few, many)
