"""Speed of the input pipeline, alone and under a running training, in CPU seconds of one core.

    python -m benchmarks.input_pipeline --data PREPARED [--config configs/base.py --batches 20
        --train_steps 20]

Reads the batches that `train` would read with this config, as it does: records, crops, texts, rows
of a batch. Prints clips per second of processor time (which other work on the machine disturbs
least) and by the clock, megabytes per second, and the cores that feed a chip of a given speed.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from opensep_jax import train
from opensep_jax.tasks import build_task
from opensep_jax.training.task import Task


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="benchmarks.input_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--data", required=True, help="folder written by `prepare`")
    flags.add_argument("--config", type=Path, default=Path("configs/base.py"))
    flags.add_argument("--batches", type=int, default=20)
    flags.add_argument("--batch", type=int, default=64)
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument(
        "--examples_per_second_per_chip", type=float, default=53.0,
        help="what a chip takes; the default is the bound of a first variant on v5e",
    )  # fmt: skip
    flags.add_argument(
        "--train_steps", type=int, default=0, help="also trains so many, one mixture at a time"
    )
    return flags


def main(args: argparse.Namespace) -> None:
    """Measures and prints."""
    config = importlib.import_module(f"configs.{args.config.stem}").get_config()
    config.data.folder = args.data
    config.data.threads = args.threads
    task = build_task(config)
    drain(task, 1, args)  # loads what is loaded once
    cpu_s, clock_s, clips, size = drain(task, args.batches, args)
    clips_per_s = clips / cpu_s
    needed = args.examples_per_second_per_chip * clips / (args.batches * args.batch)
    print(f"{args.batches} batches of {args.batch}, {config.data.crop_s} s, {args.threads} threads")
    print(f"clips/s per core: {clips_per_s:.0f} (processor), {clips / clock_s:.0f} (clock)")
    print(f"MB/s to the devices: {size / cpu_s / 1e6:.0f} (processor)")
    print(
        f"a chip at {args.examples_per_second_per_chip:.0f} examples/s takes {needed:.0f} clips/s: "
        f"{needed / clips_per_s:.2f} cores"
    )
    if args.train_steps:
        wait_s, step_s = waits(config, args.train_steps)
        print(f"while it trains: {1e3 * wait_s:.1f} ms of {1e3 * step_s:.0f} ms a step are waited")


def drain(task: Task, batches: int, args: argparse.Namespace) -> tuple[float, float, float, float]:
    """Reads batches to the last; processor and clock seconds of all threads, clips, bytes."""
    clips, size, clock, cpu = 0, 0, time.monotonic(), time.process_time()
    stream = task.batches(
        steps=batches, global_batch=args.batch, first_step=0, process=0, processes=1,
        workers=0, threads=args.threads,
    )  # fmt: skip
    for batch in stream:
        clips += int(batch["count"].sum())
        size += sum(value.nbytes for value in batch.values())
    return time.process_time() - cpu, time.monotonic() - clock, clips, size


def waits(config: ConfigDict, steps: int) -> tuple[float, float]:
    """Median seconds that the loop waits for a batch, and that a step takes, in a short run."""
    config.train.log_every_steps = config.train.batch = 1
    config.train.steps = config.train.save_every_steps = config.eval.every_steps = steps
    config.optim.warmup_steps = 1
    config.eval.mixtures = 1
    with tempfile.TemporaryDirectory() as workdir:
        train.main(config, Path(workdir), jax.devices()[:1])
        lines = [json.loads(line) for line in Path(workdir, "metrics.jsonl").open()]
    lines = [line for line in lines if "speed/data_wait_s" in line][2:]  # without compiling
    return (
        statistics.median(line["speed/data_wait_s"] for line in lines),
        statistics.median(1 / line["speed/steps_per_s"] for line in lines),
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(parser().parse_args())
