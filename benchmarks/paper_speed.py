"""How fast the `paper` and `base` networks are against the predecessor's own, on one CPU core.

    taskset -c 1 python -m benchmarks.paper_speed --peer CHECKOUT    # needs the extra `test-torch`

CHECKOUT is one of microsoft/BiModalAudioSeparation. `paper` and the peer have the same weights.
All take turns in one process with one thread, on the same mixture and prompts, in float32; what
counts is the CPU's time, so that other work on the machine does not. Separation draws the masks of
4 prompts; a training step takes 4 single and 2 two-clip targets through forward, weighted L1 loss,
backward and Adam. The peer goes through them one after the other, as its code does, and, as the
best arrangement of its network, in one batch with channels last.
"""

import os

# Before jax and torch start.
os.environ |= {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from opensep_jax.models.convert import convert
from opensep_jax.models.paper import PAPER_SIZES, PaperUNet
from opensep_jax.models.paper_table import PAPER_TABLE
from opensep_jax.models.unet import SIZES, UNet
from tests.predecessor import Predecessor, drawn

TEXT_WIDTH, TOKENS = 768, 77
LOOP, BATCHED = "peer, prompt by prompt", "peer, batched, channels last"
PAPER, BASE = "paper", "base"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="benchmarks.paper_speed", description=__doc__)
    flags.add_argument("--peer", type=Path, required=True, help="checkout of the predecessor")
    flags.add_argument("--work", choices=("separation", "training", "both"), default="both")
    flags.add_argument("--separation_shape", type=int, nargs=2, default=(512, 128))
    flags.add_argument("--training_shape", type=int, nargs=2, default=(256, 128))
    flags.add_argument("--rounds", type=int, default=5)
    return flags


def inputs(prompts: int, bins: int, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mixture's magnitude, token states of the prompts, and targets' magnitudes."""
    rng = np.random.default_rng(0)
    magnitude_BFN = np.float32(np.abs(rng.standard_normal((1, bins, frames))))
    text_BPLC = np.float32(rng.standard_normal((1, prompts, TOKENS, TEXT_WIDTH)))
    target_BPFN = np.float32(rng.uniform(size=(1, prompts, bins, frames))) * magnitude_BFN[:, None]
    return magnitude_BFN, text_BPLC, target_BPFN


def jax_network(
    network: PaperUNet | UNet, params: dict, data: tuple[np.ndarray, ...], training: bool
) -> Callable[[], np.ndarray]:
    """A call of it: masks [P, F, N], or after a training step its loss."""
    magnitude_BFN, text_BPLC, target_BPFN = jax.device_put(data)
    text_mask_BPL = jnp.ones(text_BPLC.shape[:3], bool)

    def masks(params: dict, mutable: tuple[str, ...] = ()) -> jax.Array:
        level_BFN = jnp.log1p(magnitude_BFN)
        rest = level_BFN, text_BPLC, text_mask_BPL
        (logits_BPFN, _), _ = network.apply({"params": params}, *rest, mutable=list(mutable))
        return jax.nn.sigmoid(logits_BPFN)

    def loss(params: dict) -> jax.Array:
        mask_BPFN = masks(params, ("statistics",))
        weight = jnp.clip(jnp.log1p(magnitude_BFN), 1e-3, 10)[:, None]
        return jnp.mean(weight * jnp.abs(mask_BPFN * magnitude_BFN[:, None] - target_BPFN))

    tx = optax.adam(1e-4)

    def step(params: dict, opt_state: optax.OptState) -> tuple[dict, optax.OptState, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    if not training:
        run = jax.jit(masks)
        return lambda: np.asarray(run(params)[0])
    jitted = jax.jit(step, donate_argnums=(0, 1))
    state = [jax.device_put(jax.tree.map(jnp.copy, params)), jax.jit(tx.init)(params)]

    def call() -> np.ndarray:
        *state[:], value = jitted(*state)
        return np.asarray(value)

    return call


def torch_network(
    network: Predecessor, data: tuple[np.ndarray, ...], training: bool, batched: bool
) -> Callable[[], np.ndarray]:
    """The same of the peer, all prompts at once or one after the other."""
    magnitude_BFN, text_BPLC, target_BPFN = map(torch.from_numpy, data)
    prompts = text_BPLC.shape[1]
    magnitude = magnitude_BFN[None].expand(prompts if batched else 1, -1, -1, -1)
    level, text_PLC, target_P1FN = torch.log1p(magnitude), text_BPLC[0], target_BPFN[0, :, None]
    weight = torch.clamp(level, 1e-3, 10)
    if batched:
        network = network.to(memory_format=torch.channels_last)
        level = level.contiguous(memory_format=torch.channels_last)
    groups = [slice(None)] if batched else [slice(p, p + 1) for p in range(prompts)]

    def masks() -> np.ndarray:
        with torch.no_grad():
            drawn = [torch.sigmoid(network(level, text_PLC[g])) for g in groups]
        return torch.cat(drawn)[:, 0].numpy()

    if not training:
        network.eval()
        return masks
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step() -> np.ndarray:
        total = 0.0
        for group in groups:
            mask = torch.sigmoid(network(level, text_PLC[group]))
            error = weight * torch.abs(mask * magnitude - target_P1FN[group])
            total = total + error.mean() / len(groups)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return total.detach().numpy()

    return step


def contenders(
    peer: Path, prompts: int, shape: tuple[int, int], training: bool
) -> dict[str, Callable[[], np.ndarray]]:
    """All that are compared, by name."""
    sizes = PAPER_SIZES["paper"]
    theirs = drawn(peer, **sizes, text_width=TEXT_WIDTH)
    data = inputs(prompts, *shape)
    paper, base = PaperUNet(**sizes), UNet(**SIZES["base"])
    example = jnp.ones((1, *shape)), jnp.ones((1, 1, 1, TEXT_WIDTH)), jnp.ones((1, 1, 1), bool)
    shapes = jax.eval_shape(paper.init, jax.random.key(0), *example)["params"]
    base_shapes = jax.eval_shape(base.init, jax.random.key(0), *example)["params"]
    rng = np.random.default_rng(1)
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params = {
        PAPER: convert(tensors, PAPER_TABLE, shapes),
        BASE: jax.tree.map(lambda x: np.float32(0.02 * rng.standard_normal(x.shape)), base_shapes),
    }
    for name, tree in params.items():
        count = sum(x.size for x in jax.tree.leaves(tree))
        print(f"  {name:30} {count / 1e6:8.1f} M parameters")
    return {
        LOOP: torch_network(copy.deepcopy(theirs), data, training, batched=False),
        BATCHED: torch_network(theirs, data, training, batched=True),
        PAPER: jax_network(paper, params[PAPER], data, training),
        BASE: jax_network(base, params[BASE], data, training),
    }


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds of the CPU, and the result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def main() -> int:
    """Takes turns; prints medians, spreads and the ratios of the medians."""
    args = parser().parse_args()
    torch.set_num_threads(1)
    works = {"separation": (4, args.separation_shape), "training": (6, args.training_shape)}
    for work in works if args.work == "both" else (args.work,):
        prompts, shape = works[work]
        print(f"{work}: {prompts} prompts, {shape[0]} bins x {shape[1]} frames, n = {args.rounds}")
        calls = contenders(args.peer, prompts, tuple(shape), work == "training")
        first = {name: timed(call) for name, call in calls.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(args.rounds):
            for name, call in calls.items():
                seconds[name].append(timed(call)[0])
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        for name, found in seconds.items():
            loop, batched = (medians[peer] / medians[name] for peer in (LOOP, BATCHED))
            print(
                f"  {name:30} {medians[name]:8.3f} s ({min(found):.3f} to {max(found):.3f})", end=""
            )
            print(f" {loop:5.2f}x loop {batched:5.2f}x batched; first {first[name][0]:.1f} s")
        if work == "separation":
            difference = np.abs(first[PAPER][1] - first[LOOP][1]).max()
            print(f"  largest difference of masks between paper and peer: {difference:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
