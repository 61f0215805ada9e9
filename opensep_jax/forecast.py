"""The training step of a config on devices that are not there: what can be said of it."""

import contextlib
import dataclasses
import importlib.metadata
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections

from opensep_jax import sharding
from opensep_jax.cli import DoorError
from opensep_jax.data.stand_in import write_stand_in
from opensep_jax.planning import figures
from opensep_jax.planning.hlo import read_program
from opensep_jax.planning.topology import Topology
from opensep_jax.planning.work import products
from opensep_jax.text.cache import Cache, digest
from opensep_jax.training.step import TrainState, init_state
from opensep_jax.training_run import Run, design, jit_step

logger = logging.getLogger("opensep_jax")


@contextlib.contextmanager
def records(config: ml_collections.ConfigDict, text_width: int) -> Iterator[str]:
    """The folder of the config, else a stand-in for the time of the context."""
    if config.data.folder:
        yield config.data.folder  # as it is: several, or a URL, are no path
        return
    with tempfile.TemporaryDirectory() as folder:
        counts = [int(n) for n, probability in config.mix.counts.items() if probability]
        write_stand_in(
            Path(folder),
            splits=(config.data.train_split, config.data.val_split),
            wordings=tuple({**config.data.wordings, config.eval.wording: 1}),
            names=max([*counts, *config.eval.sources]),
            sample_rate_hz=config.sample_rate_hz,
            text_tokens=config.data.text_tokens,
            text_width=text_width,
        )
        yield folder


def compiled(config: ml_collections.ConfigDict, topology: Topology, cache: Cache) -> dict:
    """What the compiler says of the step on a slice; from the cache if it has said so before."""
    run = design(config, topology.devices)
    state, batch = abstract_inputs(run)
    lowered = jit_step(run).lower(state, batch, run.constants, run.key)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    key = digest("plan 1", topology.name, versions, lowered.as_text())
    facts = cache.get(key)
    if facts is None:
        logger.info("compiling for %s (minutes for a large network)", topology.name)
        facts = compile_facts(lowered)
        cache.put(key, facts)
    common = {"method": "compiled ahead of time, not run", "versions": versions} | common_facts(
        run, state, batch
    )
    if "error" in facts:
        return common | facts | {"fits": False}
    batch_per_chip = config.train.batch / topology.chips
    batch_bytes = int(common["host_bytes_per_example"] * batch_per_chip)
    parts = {
        "state": facts.pop("argument_bytes") - batch_bytes, "batch": batch_bytes,
        "temporary": facts.pop("temporary_bytes"), "program": facts.pop("program_bytes"),
    }  # fmt: skip
    cycles, collectives = facts.pop("cycles"), facts.pop("collectives")
    return {
        **common, **facts,
        **figures.memory_figures(parts, topology.chip, batch_per_chip),
        **figures.compiled_seconds(cycles, collectives, topology.chip),
    }  # fmt: skip


def compile_facts(lowered: jax.stages.Lowered) -> dict:
    """Raw figures of a compilation, or why it failed for want of memory."""
    started, started_cpu = time.monotonic(), time.process_time()
    try:
        step = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"error": str(error).splitlines()[0]}
    memory, program = step.memory_analysis(), read_program(step.as_text())
    return {
        "compile_seconds": time.monotonic() - started,
        "compile_cpu_seconds": time.process_time() - started_cpu,
        "flops_per_chip_compiler": step.cost_analysis()["flops"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        "cycles": program.cycles,
        "collectives": [dataclasses.asdict(one) for one in program.collectives],
    }


def estimated(config: ml_collections.ConfigDict, topology: Topology) -> dict:
    """Roofline of the step of one chip, lowered for the CPU and not compiled."""
    if config.train.batch % topology.chips:
        raise DoorError(
            f"train.batch={config.train.batch} is not divisible by {topology.chips} chips"
        )
    rows = config.train.batch // topology.chips
    one = {"train.batch": rows, "mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 1}
    config = changed(config, one)
    run = design(config, jax.devices("cpu")[:1])
    state, batch = abstract_inputs(run)
    step = jit_step(run).trace(state, batch, run.constants, run.key)
    common = common_facts(run, state, batch)
    state_bytes = tree_bytes(state)
    method = "roofline estimate: products at their peak, all else free"
    if topology.chips > topology.chips_per_host:
        method += "; network between nodes as NVIDIA's own nodes have"
    return {
        **common,
        "method": method,
        "flops_per_step": common["flops_per_step"] * topology.chips,
        "flops_per_chip_compiler": step.lower().cost_analysis()["flops"],
        "mesh": {"data": topology.chips},
        "memory_per_chip_bytes": state_bytes,
        "memory_parts_bytes": {"state, without activations": state_bytes},
        "memory_limit_bytes": topology.chip.memory_bytes,
        **figures.roofline_seconds(
            list(products(step.jaxpr)),
            state_bytes,
            tree_bytes(state.params),
            topology.chips,
            topology.chip,
            topology.chips_per_host,
        ),
        "fits": state_bytes <= topology.chip.memory_bytes,
    }


def abstract_inputs(run: Run) -> tuple[TrainState, dict]:
    """Shapes of the state and of a batch, as the mesh has them."""
    state = jax.eval_shape(lambda key: init_state(run.task.init(key), run.tx), run.key)
    row = next(
        run.task.batches(
            steps=1, global_batch=1, first_step=0, process=0, processes=1, workers=0, threads=1
        )
    )
    batch = {
        name: jax.ShapeDtypeStruct((run.config.train.batch, *array.shape[1:]), array.dtype)
        for name, array in row.items()
    }
    return (
        sharding.shapes(state, run.layout),
        sharding.shapes(batch, sharding.batch_sharding(run.mesh)),
    )


def common_facts(run: Run, state: TrainState, batch: dict) -> dict:
    """Figures that no compiler is asked for."""
    loss = jax.make_jaxpr(run.task.loss)
    forward = products(loss(state.params, batch, run.constants, run.key))
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "mesh": dict(run.mesh.shape),
        "flops_per_step": 3 * sum(one.flops for one in forward),
        "clips_per_example": run.task.clips_per_example,
        "host_bytes_per_example": tree_bytes(batch) / run.config.train.batch,
    }


def changed(config: ml_collections.ConfigDict, values: dict) -> ml_collections.ConfigDict:
    """A copy with other values by their dotted names."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy.update_from_flattened_dict(values)
    return copy


def tree_bytes(tree: object) -> int:
    """Bytes of all arrays or shapes of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
