"""Mix-and-separate without text, the baseline of the text-conditioned separator.

The same network on the same mixtures: a learned token stands where each output's prompt would be,
and the loss finds out which output a target belongs to.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.models.paper import PaperUNet
from opensep_jax.separator import SeparatorNet
from opensep_jax.training.blind import blind_masks, init_blind, permuted, remixed
from opensep_jax.training.losses import LOSSES
from opensep_jax.training.separator_task import (
    SeparatorTask,
    build_separator_task,
    make_targets,
)
from opensep_jax.training.step import Metrics
from opensep_jax.training.validation import jitted_scores

ASSIGNMENTS = ("pit", "mixit")
_MIXIT_CLIPS = 4  # of a mixture at least: with fewer, one of the two mixtures is a clip alone


@dataclasses.dataclass(frozen=True)
class UnconditionalTask(SeparatorTask):
    """Recovers the clips of a mixture, or two mixtures of them, in any order.

    Attributes:
        outputs: masks that are drawn of every mixture.
        assignment: `pit`: the targets are the single clips, and silence where there are fewer
            than outputs; `mixit`: the targets are two mixtures, of the clips at even and at odd
            places, and no clip is ever seen alone.
    """

    outputs: int
    assignment: str

    def init(self, key: jax.Array) -> dict:
        """Parameters of the network, and a token for each output."""
        width = self.train.info["text"]["width"]
        return init_blind(self.net, key, outputs=self.outputs, width=width)

    def constants(self) -> dict[str, np.ndarray]:
        """Nothing is kept on the devices."""
        return {}

    def loss(
        self, params: dict, batch: dict, constants: dict, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Weighted loss, a mean over mixtures and targets; and its parts."""
        drawn = make_targets(self, batch, key)
        mix_BFN, target_BPFN = drawn["mix"], drawn["target"]
        mask_BPFN = blind_masks(self.net, params, jnp.abs(mix_BFN) ** 2)
        weights = {name: weight for name, weight in self.loss_weights.items() if weight}

        def losses(target: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
            return {name: LOSSES[name](target, mask, mix_BFN[:, None]) for name in weights}

        def cost(target: jax.Array, mask: jax.Array) -> jax.Array:
            return sum(weights[name] * x for name, x in losses(target, mask).items())

        if self.assignment == "pit":
            spare = self.outputs - target_BPFN.shape[1]
            target_BPFN = jnp.pad(target_BPFN, ((0, 0), (0, spare), (0, 0), (0, 0)))
            mask_BPFN = permuted(cost, target_BPFN, mask_BPFN)
        else:
            target_BPFN = jnp.stack([target_BPFN[:, i::2].sum(1) for i in (0, 1)], axis=1)
            mask_BPFN = remixed(cost, target_BPFN, mask_BPFN)
        found = losses(target_BPFN, mask_BPFN)
        total = sum(weights[name] * loss_BP.mean() for name, loss_BP in found.items())
        metrics = {
            f"loss/{name}/{self.assignment}": (loss_BP.sum(), jnp.float32(loss_BP.size))
            for name, loss_BP in found.items()
        }
        return total, metrics

    def describe(self) -> dict:
        """Records, and what stands in for prompts."""
        prompts = {"outputs": self.outputs, "width": self.train.info["text"]["width"]}
        return {"records": self.train.info["splits"], "prompts": prompts}

    def scorer(self, mesh: jax.sharding.Mesh, shown: int) -> jax.stages.Wrapped:
        """Scores of the best permutation."""
        return jitted_scores(self.net, mesh, shown, blind=True)


def build_unconditional_task(
    net: SeparatorNet,
    *,
    outputs: int,
    assignment: str,
    **settings: object,
) -> UnconditionalTask:
    """Reads the records and puts a task together.

    Args:
        net: network and spectrogram.
        outputs: see `UnconditionalTask`.
        assignment: likewise.
        settings: the other arguments of `build_separator_task`; all single clips are targets.

    Raises:
        ValueError: there are fewer outputs than clips, too few clips for two mixtures of them, or
            no such assignment; or the network has batch normalisation.
    """
    if assignment not in ASSIGNMENTS:
        raise ValueError(
            f"unconditional.assignment={assignment!r} is not known; known: {', '.join(ASSIGNMENTS)}"
        )
    if isinstance(net.model, PaperUNet):
        raise ValueError(
            "model.size: the predecessor's network (paper) is trained by task=separator only: "
            "task=unconditional does not measure what its batch normalisation needs"
        )
    task = build_separator_task(net, pairs="none", targets=0, **settings)
    most = max(task.rule.slots, *task.validation["sources"])
    if outputs < most:
        raise ValueError(
            f"unconditional.outputs={outputs}, but mixtures of mix.counts or eval.sources have up "
            f"to {most} clips"
        )
    if assignment == "mixit" and min(task.rule.counts) < _MIXIT_CLIPS:
        raise ValueError(
            f"unconditional.assignment=mixit, but mix.counts draws mixtures of "
            f"{min(task.rule.counts)} clips: below {_MIXIT_CLIPS} a target is a clip alone"
        )
    return UnconditionalTask(**vars(task), outputs=outputs, assignment=assignment)
