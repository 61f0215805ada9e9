"""What is scored: checkpoints, and what needs no training: the mixture itself and ideal masks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from opensep_jax.api import load_separator
from opensep_jax.checkpoint import shipped
from opensep_jax.separator import SeparatorNet, net_of
from opensep_jax.sharding import place, replicated
from opensep_jax.signal.stft import Stft, istft, stft
from opensep_jax.training.blind import init_blind
from opensep_jax.training.validation import separate_mixtures

BASELINES = ("mixture", "irm", "ibm")
_SPEC = Stft(1024, 256)  # of ideal masks, whatever the network's


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """A checkpoint, ready to separate batches of mixtures.

    Attributes:
        name: in tables.
        id: changes with the weights.
        steps: of its training.
        net: network and spectrogram.
        params: on every device.
        outputs: of a network without text; 0 for one that is queried.
        text_encoder: id of the encoder of its prompts; None for one without text.
    """

    name: str
    id: str
    steps: int | None
    net: SeparatorNet
    params: dict
    outputs: int
    text_encoder: str | None

    @property
    def blind(self) -> bool:
        """Whether the outputs come in no order, to be matched with the sources."""
        return self.outputs > 0

    def separate(
        self, sources_BST: jax.Array, texts: dict[str, jax.Array], rules: tuple[str, ...]
    ) -> dict[str, jax.Array]:
        """Stems [B, S, T] in the order of the sources, by mask rule.

        Args:
            sources_BST: true sources; their sum is separated.
            texts: of `Queries.padded`; empty for a network without text.
            rules: of `training.validation.RULES`.
        """
        separate = _jitted(self.net, rules, self.blind)
        return separate(self.params, {"sources": sources_BST, **texts})


@functools.cache
def _jitted(net: SeparatorNet, rules: tuple[str, ...], blind: bool) -> jax.stages.Wrapped:
    def stems(params: dict, batch: dict) -> dict:
        found = separate_mixtures(params, batch, net=net, rules=rules, blind=blind)
        return {rule: stems_BST for rule, (stems_BST, _) in found.items()}

    return jax.jit(stems)


def load_system(name: str, mesh: jax.sharding.Mesh) -> System:
    """A separator, or a network without text, by name or folder; see `shipped.load`.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        config, net, params = load_separator(name)
    except shipped.OtherTask as error:
        if error.task != "unconditional":
            raise
        config, net, params = _load_blind(name)
    return System(
        name=name,
        id=f"{config['model']['size']}-{shipped.params_id(params)}",
        steps=config.get("steps"),
        net=net,
        params=place(params, replicated(mesh)),
        outputs=config.get("prompts", {}).get("outputs", 0),
        text_encoder=config.get("text_encoder", {}).get("id"),
    )


def _load_blind(name: str) -> tuple[dict, SeparatorNet, dict]:
    def shapes(config: dict) -> dict:
        init = functools.partial(init_blind, net_of(config), **config["prompts"])
        return jax.eval_shape(init, jax.random.key(0))

    config, params = shipped.load(name, shapes, "unconditional")
    return config, net_of(config), params


@functools.partial(jax.jit, static_argnames="name")
def baseline_stems(sources_BST: jax.Array, name: str) -> jax.Array:
    """Stems [B, S, T] of a system that knows the sources, or does nothing.

    Args:
        sources_BST: true sources.
        name: `mixture`, unprocessed; `irm`, the ideal ratio mask, each source's magnitude over the
            sum of all (Stoeter, Liutkus and Ito, "The 2018 signal separation evaluation campaign",
            LVA/ICA 2018, IRM1); `ibm`, the ideal binary mask: each bin to its loudest source
            (Wang, "On ideal binary mask as the computational goal of auditory scene analysis",
            2005, with the other sources one by one). Both with the mixture's phase.
    """
    mix_BT = sources_BST.sum(1)
    if name == "mixture":
        return jnp.broadcast_to(mix_BT[:, None], sources_BST.shape)
    level_BSFN = jnp.abs(stft(sources_BST, _SPEC))
    if name == "ibm":
        loudest_BFN = jnp.argmax(level_BSFN, axis=1)
        mask_BSFN = jnp.stack([loudest_BFN == s for s in range(sources_BST.shape[1])], axis=1)
    else:
        mask_BSFN = level_BSFN / jnp.maximum(level_BSFN.sum(1, keepdims=True), 1e-9)
    return istft(mask_BSFN * stft(mix_BT, _SPEC)[:, None], _SPEC, mix_BT.shape[-1])
