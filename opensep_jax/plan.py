"""Says what a run will need and take on a slice, before anybody rents it.

    python -m opensep_jax.plan --config configs/base.py --topology v5e:16x16 [--config.a.b=value]

Compiles the real training step ahead of time for TPUs that are described and not there, on any
machine (pip install 'opensep-jax[tpu]'); `gpu:h100:8` and the like get an estimate by roofline.
Without `config.data.folder` the prompts are all of `config.data.text_tokens` tokens. Times are
bounds: the compiler estimates cycles of compute only.
"""

import dataclasses
import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax: nothing runs, so no chip is taken

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from opensep_jax import __version__
from opensep_jax.checkpoint.weights import cache_folder
from opensep_jax.cli import EXIT_CANNOT_RUN, EXIT_DONE, VERSION, DoorError
from opensep_jax.data.storage import write_json
from opensep_jax.forecast import changed, compiled, estimated, records
from opensep_jax.planning import figures
from opensep_jax.planning.search import Candidate, explore
from opensep_jax.planning.table import comparison, summary
from opensep_jax.planning.topology import EXAMPLES, Topology, describe_topology
from opensep_jax.text.cache import Cache

logger = logging.getLogger("opensep_jax")

FLAGS = flags.FlagValues()  # its own: `train` has flags of the same names
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", flag_values=FLAGS)
TOPOLOGY = flags.DEFINE_string("topology", "v5e:16x16", EXAMPLES, flag_values=FLAGS)
JSON = flags.DEFINE_string("json", None, "Write the report to this file.", flag_values=FLAGS)
PRICE = flags.DEFINE_float(
    "price_per_chip_hour", None, "In any currency: adds the costs.", flag_values=FLAGS
)
TEXT_WIDTH = flags.DEFINE_integer(
    "text_width", 768, "Channels of the text encoder, without data.folder.", flag_values=FLAGS
)
SEARCH = flags.DEFINE_bool(
    "search", False, "Also compile other batches, meshes and remat; goes on where it stopped.",
    flag_values=FLAGS,
)  # fmt: skip
CACHE = flags.DEFINE_string(
    "cache", None, "Folder of what was compiled (default ~/.cache/opensep_jax/plans).",
    flag_values=FLAGS,
)  # fmt: skip
DEBUG = flags.DEFINE_bool("debug", False, "Tracebacks with errors.", flag_values=FLAGS)


def main(
    config: ml_collections.ConfigDict,
    topology: Topology,
    *,
    price_per_chip_hour: float | None = None,
    text_width: int = 768,
    cache: Cache,
) -> dict:
    """The report of one arrangement; its keys are those of `--json`."""
    with records(config, text_width) as folder:
        placed = changed(config, {"data.folder": folder})
        if topology.devices:
            facts = compiled(placed, topology, cache)
        else:
            facts = estimated(placed, topology)
    batch, chips, fits = config.train.batch, topology.chips, facts.pop("fits")
    report = {
        "version": __version__, "config": json.loads(config.to_json()),
        "network": (config.captioner if config.task == "captioner" else config.model).size,
        "topology": topology.name, "chips": chips, "chips_per_host": topology.chips_per_host,
        "batch": batch, "batch_per_chip": batch / chips,
        **facts, "fits": fits,
    }  # fmt: skip
    if fits:
        report |= figures.speed_figures(
            seconds=facts["step_seconds_bound"], link_seconds=facts["link_seconds"],
            model_flops=facts["flops_per_step"], batch=batch,
            clips_per_example=facts["clips_per_example"],
            host_bytes_per_example=facts["host_bytes_per_example"],
            chip=topology.chip, chips=chips, chips_per_host=topology.chips_per_host,
            price_per_chip_hour=price_per_chip_hour,
        )  # fmt: skip
    return report


def search(
    config: ml_collections.ConfigDict, topology: Topology, measure: Callable
) -> list[tuple[Candidate, dict]]:
    """Reports of other batches, meshes and remat around the config's."""

    def report(candidate: Candidate) -> dict:
        logger.info("%s", candidate)
        values = {
            "train.batch": candidate.batch_per_chip * topology.chips,
            "model.remat": candidate.remat, "mesh.data": -1, "mesh.fsdp": candidate.fsdp,
        }  # fmt: skip
        return measure(changed(config, values))

    first = max(1, config.train.batch // topology.chips)
    parts = config.train.accumulation
    return list(explore(first, topology.chips, topology.chips_per_host, report, parts))


def _run() -> int:
    topology = describe_topology(TOPOLOGY.value)
    if SEARCH.value and not topology.devices:
        raise DoorError("--search compiles, and nothing is compiled for GPUs")
    cache = Cache(Path(CACHE.value).expanduser() if CACHE.value else cache_folder() / "plans")
    measure = functools.partial(
        main, topology=topology, price_per_chip_hour=PRICE.value,
        text_width=TEXT_WIDTH.value, cache=cache,
    )  # fmt: skip
    report = measure(CONFIG.value)
    print(summary(report))
    if SEARCH.value:
        results = search(CONFIG.value, topology, measure)
        report["search"] = [dataclasses.asdict(one) | found for one, found in results]
        print(f"\n{comparison(results)}")
    if JSON.value:
        write_json(Path(JSON.value), report)
    return EXIT_DONE


def cli() -> int:
    """Entry point of `opensep-plan`."""
    sys.path.insert(0, os.getcwd())  # config files import `configs`; a console script has no cwd
    if "--help" in sys.argv:
        print(__doc__, FLAGS.get_help())
        return EXIT_DONE
    if "--version" in sys.argv:
        print(VERSION)
        return EXIT_DONE
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s", force=True)
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        rest = FLAGS(sys.argv)[1:]
    except Exception as error:  # a config is any Python
        logger.error("%s: %s\nSee --help.", type(error).__name__, error)
        return EXIT_CANNOT_RUN
    try:
        if rest or CONFIG.value is None:
            raise DoorError(f"unexpected arguments: {' '.join(rest)}" if rest else "give --config")
        return _run()
    except (DoorError, ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        logger.error("%s", error, exc_info=DEBUG.value)
    except KeyboardInterrupt:
        logger.error("interrupted; what is compiled is kept, run again to go on")
    return EXIT_CANNOT_RUN


if __name__ == "__main__":
    sys.exit(cli())
