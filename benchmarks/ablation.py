"""What moves validation: short runs of `configs/demo.py`, each with one thing changed.

    python -m benchmarks.ablation --data runs/soundbank --out runs/ablation [--variants base]

Runs one after the other; each is an ordinary `train` run in its own workdir, so the command can be
killed and started again. Writes `ablation.json`, `ablation.md` (a table with the number of seeds)
and `ablation.png` (the curves) into --out from whatever has finished.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from opensep_jax.text.wordings import WORDINGS


def only(wording: str) -> tuple[str, ...]:
    """Flags of training on prompts of one kind."""
    others = [kind for kind in WORDINGS if kind != wording]
    return (
        f"--config.data.wordings.{wording}=1",
        *(f"--config.data.wordings.{kind}=0" for kind in others),
    )


CONFIG = "configs/demo.py"
# What differs from a config in all of them: short crops, so that more steps fit.
BUDGET = ("--config.data.crop_s=2.048",)
# What differs from `base`, as flags of `train`; `--config` names another config. Crops and targets
# change at an equal number of seconds, or of masks, per step; the baselines without text draw more
# masks of as many mixtures, and `mixit` mixes four clips always, never two or three.
VARIANTS = {
    "base": (),
    "loss_l1": ("--config.loss.negative_snr=0", "--config.loss.magnitude_l1=1"),
    "no_augmentation": ("--config.mix.speed=0", "--config.mix.eq_db=0"),
    "singles_only": ("--config.mix.pairs=none",),
    "all_targets": ("--config.mix.targets=0", "--config.train.batch=3"),
    "crop_4s": ("--config.data.crop_s=4.096", "--config.train.batch=4"),
    "wider": ("--config.model.size=small",),
    "bfloat16": ("--config.model.dtype=bfloat16",),
    "loss_sum": ("--config.loss.magnitude_l1=1",),
    "captions_only": only("caption"),
    "names_only": only("label"),
    "enriched_only": only("description"),
    "pit": ("--config=configs/baseline_pit.py",),
    "mixit": ("--config=configs/baseline_mixit.py",),
}
METRICS = tuple(
    f"val/si_sdri_{rule}/{n}_sources" for rule in ("none", "limit", "normalise") for n in (2, 3)
)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--data", required=True, type=Path)
    flags.add_argument("--out", required=True, type=Path)
    flags.add_argument("--variants", default=",".join(VARIANTS))
    flags.add_argument("--seeds", default="0,1")
    flags.add_argument("--steps", type=int, default=1000)
    flags.add_argument("--mixtures", type=int, default=100, help="of each number of sources")
    return flags


def flags_of(variant: str) -> tuple[str, ...]:
    """Flags of `train` for a variant: its config, what all of them change, and what it changes."""
    named = [flag for flag in VARIANTS[variant] if flag.startswith("--config=")]
    changes = [flag for flag in VARIANTS[variant] if flag not in named]
    return (*(named or [f"--config={CONFIG}"]), *BUDGET, *changes)


def train(args: argparse.Namespace, variant: str, seed: str) -> None:
    """One run, resumed if it was begun; its output goes to `train.log` of its workdir."""
    workdir = args.out / f"{variant}-{seed}"
    workdir.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "opensep_jax.train", *flags_of(variant),
        "--workdir", str(workdir), f"--config.seed={seed}", f"--config.data.folder={args.data}",
        f"--config.train.steps={args.steps}", f"--config.eval.mixtures={args.mixtures}",
        f"--config.eval.every_steps={args.steps // 4}", "--config.train.keep_checkpoints=1",
    ]  # fmt: skip
    with (workdir / "train.log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)


def curves(out: Path, variant: str, seeds: Iterable[str]) -> list[dict[int, dict[str, float]]]:
    """Validation by step of each seed that has some."""
    found = []
    for seed in seeds:
        file = out / f"{variant}-{seed}" / "metrics.jsonl"
        lines = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )
        curve = {line["step"]: line for line in lines if METRICS[0] in line}
        if curve:
            found.append(curve)
    return found


def write(args: argparse.Namespace, seeds: list[str]) -> None:
    """Table and picture of what has finished."""
    rows, figure, axes = [], *plt.subplots(figsize=(8, 5))
    for variant in VARIANTS:
        finished = [c for c in curves(args.out, variant, seeds) if args.steps in c]
        if not finished:
            continue
        values = np.array([[curve[args.steps][name] for name in METRICS] for curve in finished])
        rows.append(
            {"variant": variant, "seeds": len(finished), "flags": " ".join(VARIANTS[variant])}
            | {name: values[:, i].tolist() for i, name in enumerate(METRICS)}
        )
        steps = sorted(finished[0])
        mean = [np.mean([curve[s]["val/si_sdri"] for curve in finished]) for s in steps]
        axes.plot(steps, mean, marker="o", label=f"{variant} ({len(finished)})")
    axes.set(xlabel="step", ylabel="validation SI-SDR improvement (dB), mean of 2 and 3 sources")
    axes.legend(title="variant (seeds)", fontsize="small")
    figure.savefig(args.out / "ablation.png", dpi=120, bbox_inches="tight")
    (args.out / "ablation.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        f"| variant | seeds | {' | '.join(m.removeprefix('val/si_sdri_') for m in METRICS)} |",
        "|---" * (2 + len(METRICS)) + "|",
    ]
    for row in rows:
        cells = [f"{np.mean(row[m]):.2f} ({min(row[m]):.2f} to {max(row[m]):.2f})" for m in METRICS]
        lines.append(f"| {row['variant']} | {row['seeds']} | {' | '.join(cells)} |")
    (args.out / "ablation.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> int:
    """Trains what is missing, then writes the results."""
    args = parser().parse_args()
    seeds, variants = args.seeds.split(","), args.variants.split(",")
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        print(f"unknown {', '.join(unknown)}; known: {', '.join(VARIANTS)}", file=sys.stderr)
        return 2
    for seed in seeds:
        for variant in variants:
            train(args, variant, seed)
            write(args, seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
