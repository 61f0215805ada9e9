"""The tasks that a config can name: what is learned, and what a checkpoint says of it."""

import json
from collections.abc import Mapping

import ml_collections

from opensep_jax import __version__
from opensep_jax.cli import DoorError
from opensep_jax.data.mix import Augment
from opensep_jax.data.pipeline import MixtureRule
from opensep_jax.separator import SeparatorNet, build_separator
from opensep_jax.training.separator_task import build_separator_task, whole_frames
from opensep_jax.training.task import Task

# Sections of the config that only other tasks read: not part of what a run learns.
UNREAD = {
    "separator": ("captioner", "unconditional"),
    "captioner": ("loss", "model", "stft", "unconditional"),
    "unconditional": ("captioner",),
}


def build_task(config: ml_collections.ConfigDict) -> Task:
    """The task that the config names."""
    if config.task not in UNREAD:
        raise DoorError(f"config.task={config.task!r} is not known; known: {', '.join(UNREAD)}")
    if not config.data.folder:
        raise DoorError("config.data.folder is empty: give --config.data.folder=PREPARED")
    builders = {"separator": _separator, "captioner": _captioner, "unconditional": _unconditional}
    return builders[config.task](config)


def describe(config: ml_collections.ConfigDict, task: Task) -> dict:
    """What a checkpoint says of itself: all that is needed to use it, and the whole config."""
    description = {
        "schema": 1,
        "task": config.task,
        "sample_rate_hz": config.sample_rate_hz,
        "window_s": config.window_s,
        "config": json.loads(config.to_json()),
        "version": __version__,
        **task.describe(),
    }
    if config.task == "captioner":
        own = config.captioner
        return description | {"model": {"size": own.size}, "mel": own.mel.to_dict()}
    if config.task == "separator":
        encoder = description["text_encoder"]
        description["text_encoder"] = encoder | {"max_tokens": config.data.text_tokens}
    return description | {
        "model": {"size": config.model.size, "dtype": config.model.dtype},
        "stft": config.stft.to_dict(),
    }


def _separator(config: ml_collections.ConfigDict) -> Task:
    net, own = _net(config), {key: config.mix[key] for key in ("pairs", "targets")}
    return build_separator_task(net, **own, **_settings(config, net))


def _unconditional(config: ml_collections.ConfigDict) -> Task:
    # Here, like the captioner: most runs have no use for it.
    from opensep_jax.training.unconditional_task import build_unconditional_task

    net, own = _net(config), config.unconditional.to_dict()
    return build_unconditional_task(net, **own, **_settings(config, net))


def _net(config: ml_collections.ConfigDict) -> SeparatorNet:
    return build_separator(
        **config.model.to_dict(), **config.stft.to_dict(), sample_rate_hz=config.sample_rate_hz
    )


def _settings(config: ml_collections.ConfigDict, net: SeparatorNet) -> dict:
    """What tasks that separate are built of, besides the network."""
    samples = whole_frames(net, config.data.crop_s)
    augment = Augment(config.mix.level_db, config.mix.speed, config.mix.eq_db)
    raw_samples = augment.raw_samples(samples)
    return _folders(config) | {
        "rule": _rule(config, raw_samples, config.mix.counts, config.data.wordings),
        "augment": augment, "samples": samples,
        "loss_weights": config.loss.to_dict(), "text_tokens": config.data.text_tokens,
        "validation": _validation(config, "every_steps"),
    }  # fmt: skip


def _captioner(config: ml_collections.ConfigDict) -> Task:
    # Here, so that a separator is trained without the captioner's modules.
    from opensep_jax.data.mel_augment import MelAugment
    from opensep_jax.training.captioner_task import build_captioner_task

    own = config.captioner.to_dict()
    samples = round(config.data.crop_s * config.sample_rate_hz)
    augment = Augment(config.mix.level_db, config.mix.speed, eq_db=0.0)
    return build_captioner_task(
        **_folders(config), size=own["size"], **own["mel"], sample_rate_hz=config.sample_rate_hz,
        rule=_rule(config, augment.raw_samples(samples), own["counts"], {"label": 1.0}),
        augment=augment, samples=samples, crop_s=config.data.crop_s, window_s=config.window_s,
        mel_augment=MelAugment(**own["augment"], eq_db=config.mix.eq_db),
        tag_weight=own["tag_weight"], validation=_validation(config, "every_steps", "wording"),
    )  # fmt: skip


def _folders(config: ml_collections.ConfigDict) -> dict:
    """Where the records of every task are."""
    return {key: config.data[key] for key in ("folder", "train_split", "val_split")}


def _rule(
    config: ml_collections.ConfigDict, samples: int, counts: Mapping, wordings: Mapping
) -> MixtureRule:
    """How every task draws its examples."""
    data = config.data
    return MixtureRule(
        samples=samples, counts={int(n): p for n, p in counts.items() if p},
        wordings=dict(wordings.items()), balance_labels=data.balance_labels,
        max_names=data.max_names, seed=config.seed, weights=tuple(data.weights),
        scenes=data.scenes, families_apart=data.families_apart, damaged=data.damaged,
    )  # fmt: skip


def _validation(config: ml_collections.ConfigDict, *others: str) -> dict:
    """Settings of the validation mixtures: section `eval` but for the `others`."""
    return {k: v for k, v in config.eval.to_dict().items() if k not in others}
