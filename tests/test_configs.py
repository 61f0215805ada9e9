"""Every config builds what it asks for, and every key of `base` has a reader."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from opensep_jax import run_config, tasks
from opensep_jax.data import mix
from opensep_jax.models.paper import PaperUNet
from opensep_jax.text.wordings import WORDINGS
from opensep_jax.training.losses import LOSSES
from opensep_jax.training.optim import make_schedule

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(file.stem for file in (ROOT / "configs").glob("*.py") if file.stem != "__init__")
# Sections whose keys are the data's: `counts` map numbers, `data.wordings` and `loss` names.
MAPPINGS = {"data.wordings", "mix.counts", "captioner.counts", "loss"}


def _config(name: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and values of everything that is set."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("name", NAMES)
def test_a_config_changes_keys_of_base_and_adds_none(name):
    base, config = dict(_leaves(_config("base"))), dict(_leaves(_config(name)))
    assert config.keys() == base.keys()
    assert {key: type(value) for key, value in config.items()} == {
        key: type(value) for key, value in base.items()
    }
    locked = _config(name)
    with pytest.raises(AttributeError, match='Key "lernrate" does not exist'):
        locked.optim.lernrate = 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_config_says_how_it_is_used_and_what_to_expect(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"Command: python -m opensep_jax.train --config configs/{name}.py" in text
    assert "\nExpected: " in text


@pytest.mark.parametrize("name", NAMES)
def test_a_config_builds_its_task_and_network(name, tiny_dataset):
    config = _config(name)
    config.data.folder = str(tiny_dataset)
    task = tasks.build_task(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 10_000
    assert abs(task.samples / config.sample_rate_hz - config.data.crop_s) < 0.02
    assert task.rule.slots >= 2
    if config.task == "separator":
        model = task.net.model
        if isinstance(model, PaperUNet):
            stride = 2**model.downs
        else:
            stride = model.patch * 2 ** (len(model.widths) - 1)
        assert task.net.stft.frames(task.samples) % stride == 0  # no frame is only padding
        assert 0 < task.text_tokens <= config.data.text_tokens


@pytest.mark.parametrize("name", NAMES)
def test_values_make_sense_together(name):
    config = _config(name)
    for probabilities in (config.mix.counts, config.captioner.counts, config.data.wordings):
        np.testing.assert_allclose(sum(probabilities.values()), 1, rtol=1e-9)
    assert set(config.data.wordings) == set(WORDINGS) and config.eval.wording in WORDINGS
    assert set(config.loss) == set(LOSSES) and sum(config.loss.values()) > 0
    slots = max(int(n) for n, probability in config.mix.counts.items() if probability)
    assert config.mix.targets <= len(mix.candidate_targets(slots, config.mix.pairs))
    schedule = make_schedule(
        peak=config.optim.learning_rate, warmup_steps=config.optim.warmup_steps,
        total_steps=config.train.steps, final_fraction=config.optim.final_fraction,
    )  # fmt: skip
    rates = [float(schedule(s)) for s in (0, config.optim.warmup_steps, config.train.steps)]
    peak = config.optim.learning_rate
    np.testing.assert_allclose(rates, [0, peak, config.optim.final_fraction * peak], rtol=1e-5)


def test_every_key_has_a_reader():
    """A key of `base` occurs in the package as a name that is read, an attribute or a string."""
    words, chains = set(), set()
    for file in (ROOT / "opensep_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                words.add(node.id)
            elif isinstance(node, ast.Attribute):
                words.add(node.attr)
                chains.add(ast.unparse(node).partition("config.")[2])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
    unread = []
    for key, _ in _leaves(_config("base")):
        section, _, name = key.rpartition(".")
        if section == "train":
            common = "_" not in name  # such as `steps`: the whole chain must be there
            read = key in chains or (name in words and not common)
        elif section in MAPPINGS:
            read = section.rpartition(".")[2] in words
        else:
            read = name in words
        if not read:
            unread.append(key)
    assert not unread, f"no code reads {', '.join(unread)}"


def test_keys_that_may_change_on_resuming_exist():
    assert set(run_config.FREE_KEYS) <= {key for key, _ in _leaves(_config("base"))}
