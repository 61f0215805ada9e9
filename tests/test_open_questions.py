"""Benchmarks of the open questions: tables with paired differences, and what they compare."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags
from PIL import Image

from benchmarks import ablation, comparison, open_questions
from opensep_jax.cli import run
from opensep_jax.data.records import RecordError
from opensep_jax.text.parse import Parser
from tests.scripted_model import letter_bank
from tests.tiny_checkpoint import shared_checkpoint


def test_differences_are_paired_and_plotted(tmp_path: Path):
    rng = np.random.default_rng(0)
    base = rng.normal(5, 3, 200)
    values = {
        "one": {2: {"SI-SDRi": base.tolist()}},
        "other": {2: {"SI-SDRi": (base + rng.normal(0.5, 0.2, 200)).tolist()}},
    }
    comparison.write(tmp_path, "toy", values, "Which?", "python -m toy")
    one, other = json.loads((tmp_path / "toy.json").read_text())
    (mean, low, high), (difference, lower, upper) = other["SI-SDRi"]
    assert high - low == pytest.approx(4 * 3 / 200**0.5, rel=0.2)
    assert difference == pytest.approx(0.5, abs=0.05) and upper - lower < 0.1
    assert one["SI-SDRi"][1] == [None] * 3
    text = (tmp_path / "toy.md").read_text()
    assert "| contestant | sources | mixtures | SI-SDRi | less that of one |" in text
    assert f"| other | 2 | 200 | {mean:.2f} [{low:.2f}, {high:.2f}] | {difference:.2f}" in text
    with Image.open(tmp_path / "toy.png") as picture:
        assert picture.width > 500


def _ask(question: str, tiny_dataset: Path, out: Path, *flags: object) -> list[dict]:
    argv = [question, "--data", tiny_dataset, "--out", out, "--checkpoint", shared_checkpoint()]
    argv += ["--mixtures", 5, "--num_sources", 2, "--language_model", "none", *flags]
    given = [str(part) for part in argv]
    expected = (RecordError, ValueError)
    assert run(open_questions.main, open_questions.parser(), expected, given) == 0
    return json.loads((out / f"{question}.json").read_text())


def test_variants_are_averaged_over_seeds_and_asked_their_own_query(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = tmp_path / "runs"
    for name in ("base-0", "base-1", "names_only-0", "other-0"):
        (runs / name).mkdir(parents=True)
    asked = {}

    def evaluated(args: object, name: str, flags: list[str]) -> list[dict]:
        asked[name] = flags[flags.index("--queries") + 1]
        gain = {"base-0": 1.0, "base-1": 3.0, "names_only-0": 5.0}[name]
        row = {"system": str(runs / name), "query": asked[name], "masks": "limit"}
        scores = [{"system": "mixture", "si_sdr": [0, 1]}, row | {"si_sdr": [gain, gain + 1]}]
        return [{"sources": 2, "scores": scores}] * 3

    monkeypatch.setattr(open_questions, "_evaluated", evaluated)
    base, first, second, names = _ask("training", tiny_dataset, tmp_path / "out", "--runs", runs)
    assert asked == {"base-0": "caption", "base-1": "caption", "names_only-0": "label"}
    assert base["contestant"] == "base (2 seeds)" and base["SI-SDRi"][0] == [2, 2, 2]
    assert names["SI-SDRi"] == [[5, 5, 5], [3, 3, 3]]
    assert (first["contestant"], first["SI-SDRi"][0][0], second["SI-SDRi"][0][0]) == (
        "base-0",
        1,
        3,
    )
    assert set(open_questions.TRAINED) <= set(ablation.VARIANTS)


def _parsed(given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    """The config that `train` would have."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, flag_values=values)
    monkeypatch.setattr(sys, "argv", ["train", *given])
    assert values(sys.argv) == ["train"]
    return config.value


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections
def test_a_variant_is_a_config_and_flags(monkeypatch: pytest.MonkeyPatch):
    configs = {
        name: _parsed(ablation.flags_of(name), monkeypatch)
        for name in ("base", "crop_4s", "pit", "mixit")
    }
    tasks = {name: (c.task, c.unconditional.assignment) for name, c in configs.items()}
    assert tasks["base"][0] == tasks["crop_4s"][0] == "separator"
    assert tasks["pit"] == ("unconditional", "pit") and tasks["mixit"] == ("unconditional", "mixit")
    assert [c.data.crop_s for c in configs.values()] == [2.048, 4.096, 2.048, 2.048]
    drawn = {n: {k for k, p in c.mix.counts.items() if p} for n, c in configs.items()}
    assert drawn["base"] == drawn["pit"] == {"2", "3", "4"} and drawn["mixit"] == {"4"}


def test_prompts_that_tell_more_are_scored(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        open_questions, "load_parser", lambda *_, **__: Parser(None, letter_bank(), {})
    )
    monkeypatch.setattr(open_questions, "SECONDS", 0.25)
    rows = _ask("detail", tiny_dataset, tmp_path)
    means = {row["contestant"]: row["SI-SDRi"][0][0] for row in rows}
    assert list(means) == ["name", "nothing", "name and timbre", "name and all properties"]
    assert len(set(means.values())) > 2
