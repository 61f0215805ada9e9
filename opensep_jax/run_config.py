"""What a config may say, and what of it may change while a run goes on."""

from pathlib import Path

import ml_collections
from etils import epath
from flax import traverse_util

from opensep_jax.checkpoint.state import read_config
from opensep_jax.cli import DoorError
from opensep_jax.models.paper import PAPER_SIZES
from opensep_jax.tasks import UNREAD

# What a run may be resumed with another value of: it changes when things happen and on what, not
# what is learned, nor the mixtures whose scores say which checkpoint is best. (More steps stretch
# the schedule.) The records are compared by their content.
FREE_KEYS = (
    "data.damaged", "data.folder", "data.threads", "data.workers",
    "eval.batch", "eval.every_steps", "eval.panels",
    "mesh.data", "mesh.fsdp", "mesh.fsdp_min_size", "mesh.tensor", "model.remat",
    "train.accumulation", "train.keep_checkpoints", "train.log_every_steps",
    "train.save_every_steps", "train.steps",
)  # fmt: skip
# Of these, what changes what is learned where batches are normalised: each part by itself.
NORMALISED_KEYS = ("train.accumulation",)
POSITIVE_KEYS = (
    "window_s", "data.crop_s", "data.max_names", "data.text_tokens", "data.threads",
    "eval.batch", "eval.every_steps", "eval.mixtures", "eval.seconds",
    "train.accumulation", "train.batch", "train.keep_checkpoints",
    "train.log_every_steps", "train.save_every_steps", "train.steps",
)  # fmt: skip
SECONDS_KEYS = ("window_s", "data.crop_s", "eval.seconds")
# Sections of numbers that are not negative, and not all of them zero.
WEIGHT_KEYS = ("captioner.counts", "data.wordings", "loss", "mix.counts")


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises if a number lies where it means nothing."""
    values = flat(config.to_dict())
    wrong = [f"config.{key}={values[key]}" for key in POSITIVE_KEYS if values[key] <= 0]
    if wrong:
        raise DoorError(f"{', '.join(wrong)} must be positive")
    for key in SECONDS_KEYS:
        if round(values[key] * config.sample_rate_hz) < 1:
            raise DoorError(
                f"config.{key}={values[key]} is less than a sample of "
                f"config.sample_rate_hz={config.sample_rate_hz}"
            )
    if min(config.eval.sources, default=0) < 1:
        raise DoorError(
            f"config.eval.sources={config.eval.sources}: numbers of sources, such as (2, 3), "
            "are needed, and positive ones"
        )
    for section in WEIGHT_KEYS:
        weights = {k: v for k, v in values.items() if k.startswith(f"{section}.")}
        if min(weights.values()) < 0 or not any(weights.values()):
            shown = ", ".join(f"config.{key}={value}" for key, value in weights.items())
            raise DoorError(f"{shown}: none may be negative, and one must be more than zero")
    if config.mesh.tensor != 1:
        raise DoorError(
            f"config.mesh.tensor={config.mesh.tensor} must be 1: no network that is trained has "
            "anything to split over this axis; use mesh.data or mesh.fsdp"
        )


def refuse_other_config(workdir: Path | epath.Path, description: dict) -> None:
    """Raises if the workdir holds a run that learns something else."""
    stored = read_config(workdir)
    if stored is None:
        return
    before, now = (
        {
            **flat(of.get("config", {})),
            "text_encoder.id": of.get("text_encoder", {}).get("id"),
            **flat({k: of.get(k) for k in ("records", "clauses")}),
        }
        for of in (stored, description)
    )
    normalised = description["model"]["size"] in PAPER_SIZES
    free = set(FREE_KEYS).difference(NORMALISED_KEYS if normalised else ())
    unread = tuple(f"{section}." for section in UNREAD[description["task"]])
    wrong = [
        f"{key}: {before.get(key, 'absent')!r} there, {now.get(key, 'absent')!r} now"
        for key in sorted(before.keys() | now.keys())
        if key not in free and not key.startswith(unread) and before.get(key) != now.get(key)
    ]
    if wrong:
        raise DoorError(
            f"{workdir} holds a run of another config ({'; '.join(wrong)}); use another --workdir"
        )


def flat(tree: dict) -> dict:
    """Leaves of nested dicts by their dotted names."""
    return traverse_util.flatten_dict(tree, sep=".")
