"""Whether the structure of `base` that is fast on TPUs separates as well as others at equal steps.

    python -m benchmarks.base_structure --data runs/soundbank --out runs/base_structure

The others are `base` without its gate (`ungated`), that with patches of 2 x 2 at 128 channels on a
level more (`patch2`), with such patches and up to two blocks on its levels (`deep`), and the
predecessor's network (`paper`). Says what each has and takes at its full widths; then trains all at
a fraction of them, alike in all else, on crops of 2 s in float32; the higher bins are pooled as in
`demo`, except for `paper`, which knows no pooling. Scores all on the same mixtures. The runs are
ordinary ones of `train`, one after the other, so the command can be killed and started again.
Prints the scores and their paired differences, and writes `base_structure.md`, `.json` and `.png`.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks import comparison
from configs import base, demo
from opensep_jax import cli, evaluate, train
from opensep_jax.checkpoint.state import load_params
from opensep_jax.data.records import RecordError
from opensep_jax.models.paper import PAPER_SIZES, PaperUNet
from opensep_jax.models.unet import SIZES, UNet

STRUCTURES = {
    "base": SIZES["base"],
    "ungated": SIZES["base"] | {"gate_channels": 0},
    "patch2": SIZES["base"]
    | {
        "patch": 2,
        "widths": (128, 256, 512, 512, 1024),
        "encoder_blocks": (1, 1, 1, 1, 1),
        "decoder_blocks": (1, 1, 1, 1),
        "gate_channels": 0,
    },
    "deep": SIZES["base"]
    | {
        "patch": 2,
        "widths": (128, 256, 512, 1024),
        "encoder_blocks": (1, 2, 2, 2),
        "decoder_blocks": (1, 2, 2),
        "bottom_blocks": 2,
        "gate_channels": 0,
    },
    "paper": PAPER_SIZES["paper"],
}


def narrowed(sizes: dict, by: int) -> dict:
    """The structure with a fraction of its widths; groups of as many channels."""
    if "downs" in sizes:
        return sizes | {key: sizes[key] // by for key in ("width", "features", "joint_width")}
    narrow = {key: sizes[key] // by for key in ("groups", "gate_channels")}
    widths = tuple(width // by for width in sizes["widths"])
    return sizes | narrow | {"widths": widths, "linear_bins": 128, "pool_bins": 3}


def full_width(sizes: dict, prompts: int = 6) -> str:
    """Parameters, and FLOPs of the masks of one mixture of 512 bins x 256 frames (XLA's count)."""
    net = PaperUNet(**sizes) if "downs" in sizes else UNet(**sizes)
    inputs = (
        jax.ShapeDtypeStruct((1, 512, 256), "float32"),
        jax.ShapeDtypeStruct((1, prompts, 16, 768), "float32"),
        jax.ShapeDtypeStruct((1, prompts, 16), bool),
    )
    params = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    size = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    if "downs" in sizes:  # its prompts are a loop, of which the compiler counts one turn
        return f"{size:.1f} M parameters"
    flops = jax.jit(net.apply).lower(params, *inputs).cost_analysis()["flops"]
    return f"{size:.1f} M parameters, {flops / 1e9:.0f} GFLOP for {prompts} prompts"


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
    flags.add_argument("--narrower", type=int, default=8, help="by which the widths are divided")
    flags.add_argument("--seeds", default="0,1")
    flags.add_argument("--steps", type=int, default=600)
    flags.add_argument("--mixtures", type=int, default=200, help="of each number of sources")
    return flags


def trained(args: argparse.Namespace, structure: str, seed: int) -> Path:
    """The workdir of a run that has come to its last step."""
    workdir = args.out / f"{structure}-{seed}"
    config = demo.get_config().unlock()
    config.seed = seed
    config.model.size = structure
    if structure in PAPER_SIZES:
        config.stft.n_fft_samples = base.get_config().stft.n_fft_samples
    config.data.folder = str(args.data)
    config.data.crop_s = 2.048
    config.train.update(steps=args.steps, save_every_steps=100, keep_checkpoints=1)
    config.eval.update(every_steps=args.steps // 4, mixtures=100)
    if code := train.main(config.lock(), workdir):
        raise SystemExit(code)  # told to stop; the same command goes on
    return workdir


def scored(args: argparse.Namespace, workdir: Path) -> dict[int, dict[str, list[float]]]:
    """SI-SDR improvement in dB of each mixture, by number of sources; rule `limit`."""
    out = args.out / f"{workdir.name}-scores"
    argv = [
        "--checkpoint", str(workdir), "--data", str(args.data), "--out", str(out), "--masks",
        "limit", "--measures", "si_sdr", "--queries", "caption", "--baselines", "mixture",
        "--num_sources", "2,3", "--mixtures", str(args.mixtures),
    ]  # fmt: skip
    if code := cli.run(evaluate.main, evaluate.parser(), (RecordError, ValueError), argv):
        raise SystemExit(code)
    lines = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    return comparison.improvements(lines, {"query": "caption"})


def main() -> int:
    """Trains what is missing, scores all, and prints the table."""
    args = parser().parse_args()
    for name, sizes in STRUCTURES.items():
        known = PAPER_SIZES if name in PAPER_SIZES else SIZES
        known[name] = narrowed(sizes, args.narrower)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    values = {}
    for structure in args.structures.split(","):
        print(f"{structure} at full width: {full_width(STRUCTURES[structure])}", flush=True)
        workdirs = [trained(args, structure, seed) for seed in seeds]
        runs = [scored(args, workdir) for workdir in workdirs]
        values[structure] = comparison.mean_of(runs)
        _, params = load_params(workdirs[0])
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        means = [f"{np.mean([of['SI-SDRi'] for of in own.values()]):.2f}" for own in runs]
        print(f"{structure}: {size:,} parameters, {', '.join(means)} dB by seed", flush=True)
    title = f"The structure of `base` after {args.steps} steps, {len(seeds)} seed(s)."
    command = " ".join(["python -m benchmarks.base_structure", *sys.argv[1:]])
    comparison.write(args.out, "base_structure", values, title, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
