"""Whether the structure of `base` that is fast on TPUs separates as well as the one before.

    python -m benchmarks.base_structure --data runs/soundbank --out runs/base_structure

Trains both at an eighth of their widths, alike in all else, on short crops; the higher bins are
pooled as in the shipped network. The runs are ordinary ones of `train`, one after the other, so
the command can be killed and started again. Prints and writes `base_structure.json`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from configs import demo
from opensep_jax import train
from opensep_jax.models.unet import SIZES

_POOLED = {"heads": 8, "mlp_ratio": 4, "linear_bins": 128, "pool_bins": 3, "groups": 4}
STRUCTURES = {
    "before": {
        "patch": 2,
        "widths": (16, 32, 64, 128),
        "encoder_blocks": (1, 2, 2, 2),
        "decoder_blocks": (1, 2, 2),
        "bottom_blocks": 2,
    },
    "base": {
        **{key: SIZES["base"][key] for key in ("patch", "encoder_blocks", "decoder_blocks")},
        "widths": tuple(width // 8 for width in SIZES["base"]["widths"]),
        "bottom_blocks": SIZES["base"]["bottom_blocks"],
    },
}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="benchmarks.base_structure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--data", required=True, type=Path)
    flags.add_argument("--out", required=True, type=Path)
    flags.add_argument("--structures", default=",".join(STRUCTURES))
    flags.add_argument("--seeds", default="0,1")
    flags.add_argument("--steps", type=int, default=600)
    flags.add_argument("--mixtures", type=int, default=100, help="of each number of sources")
    return flags


def run(args: argparse.Namespace, structure: str, seed: int) -> float:
    """Validation of one run at its last step: SI-SDR improvement in dB, rule `limit`."""
    workdir = args.out / f"{structure}-{seed}"
    config = demo.get_config().unlock()
    config.seed = seed
    config.model.size = structure
    config.data.folder = str(args.data)
    config.data.crop_s = 2.048
    config.train.update(steps=args.steps, save_every_steps=100, keep_checkpoints=1)
    config.eval.update(every_steps=args.steps // 4, mixtures=args.mixtures)
    if code := train.main(config.lock(), workdir):
        raise SystemExit(code)  # told to stop; the same command goes on
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "val/si_sdri" in line and line["step"] == args.steps]
    return last[-1]["val/si_sdri"]


def main() -> int:
    """Trains what is missing and prints the difference."""
    args = parser().parse_args()
    SIZES.update({name: _POOLED | sizes for name, sizes in STRUCTURES.items()})
    args.out.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[float]] = {}
    for seed in map(int, args.seeds.split(",")):
        for structure in args.structures.split(","):
            scores.setdefault(structure, []).append(run(args, structure, seed))
            print(f"{structure}, seed {seed}: {scores[structure][-1]:.2f} dB", flush=True)
    results = {"steps": args.steps, "val/si_sdri": scores}
    (args.out / "base_structure.json").write_text(json.dumps(results, indent=1) + "\n")
    for structure, values in scores.items():
        print(f"{structure}: {np.mean(values):.2f} dB ({min(values):.2f} to {max(values):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
