"""What watching a run costs: seconds per step when every step is logged, against every fiftieth.

    python -m benchmarks.logging_cost --data runs/soundbank [--config configs/demo.py]

Runs `train` in turns with both settings and takes the speeds that it wrote itself, after the first
fifty steps. A loop that waited for the devices at each log line would show it here.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WARM = 50  # steps left out, the compilation among them


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="benchmarks.logging_cost", description=__doc__)
    flags.add_argument("--data", required=True, type=Path)
    flags.add_argument("--config", default="configs/demo.py")
    flags.add_argument("--steps", type=int, default=150, help="a multiple of 50")
    flags.add_argument("--rounds", type=int, default=3)
    return flags


def seconds_per_step(args: argparse.Namespace, every: int) -> float:
    """Mean over the steps after `WARM` of a run that logs every so many steps."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable, "-m", "opensep_jax.train", "--config", args.config,
            "--workdir", workdir, f"--config.data.folder={args.data}",
            f"--config.train.steps={args.steps}", f"--config.train.log_every_steps={every}",
            f"--config.train.save_every_steps={args.steps}", "--config.eval.mixtures=1",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        lines = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
        speeds = [
            line["speed/steps_per_s"]
            for line in lines
            if "speed/steps_per_s" in line and line["step"] > WARM
        ]
    return statistics.fmean(1 / speed for speed in speeds)


def main() -> int:
    """Alternates, and prints each figure and the ratio of the medians."""
    args = parser().parse_args()
    seconds: dict[int, list[float]] = {1: [], WARM: []}
    for _ in range(args.rounds):
        for every, found in seconds.items():
            found.append(seconds_per_step(args, every))
            print(f"log every {every:2} steps: {1e3 * found[-1]:8.2f} ms per step", flush=True)
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[WARM])
    print(f"every step / every {WARM}: {ratio:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
