"""Scores of what was found: pairing of stems, missed and invented sources, names, and the door."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from opensep_jax import evaluate
from opensep_jax.cli import run
from opensep_jax.data.records import RecordError
from opensep_jax.evaluation import discovered
from opensep_jax.text.caption import Captioner
from opensep_jax.text.parse import Parser
from tests.scripted_model import letter_bank
from tests.tiny_checkpoint import shared_checkpoint


@pytest.fixture
def sources_ST(noise_T: np.ndarray) -> np.ndarray:
    return np.stack([noise_T, np.roll(noise_T, 7), np.roll(noise_T, 99)])


def test_a_missed_source_has_no_improvement_and_costs(sources_ST: np.ndarray):
    stems_KT = sources_ST[[2, 0]] + 0.1 * sources_ST[[1, 1]]  # 20 dB, from -3 dB
    scores = discovered.stem_scores(stems_KT, sources_ST, sources_ST.sum(0))
    np.testing.assert_allclose(scores["si_sdri"], [23, 0, 23], atol=0.4)
    assert scores["penalised_si_sdr"] == pytest.approx((20 + 20 - 30) / 3, abs=0.2)
    assert scores["over_separated"] == 0 and scores["under_separated"] == pytest.approx(1 / 3)


def test_a_source_in_two_stems_is_over_separated(sources_ST: np.ndarray):
    two_ST = sources_ST[:2]
    stems_KT = np.stack([two_ST[0], 0.5 * two_ST[0], two_ST[1]]) + 0.1 * sources_ST[2]
    scores = discovered.stem_scores(stems_KT, two_ST, two_ST.sum(0))
    np.testing.assert_allclose(scores["si_sdri"], [20, 20], atol=0.4)
    assert scores["penalised_si_sdr"] == pytest.approx((20 + 20 - 30) / 3, abs=0.2)
    assert scores["over_separated"] == pytest.approx(1 / 3) and scores["under_separated"] == 0


def test_nothing_found(sources_ST: np.ndarray):
    scores = discovered.stem_scores(sources_ST[:0], sources_ST, sources_ST.sum(0))
    assert scores == {
        "si_sdri": [0, 0, 0], "penalised_si_sdr": -30, "over_separated": 0, "under_separated": 1,
    }  # fmt: skip


def test_a_silent_source_counts_nowhere(sources_ST: np.ndarray):
    with_silence = np.concatenate([np.zeros_like(sources_ST[:1]), sources_ST[:2]])
    stems_KT = sources_ST[:2] + 0.1 * sources_ST[2]
    mix_T = sources_ST[:2].sum(0)
    scores = discovered.stem_scores(stems_KT, with_silence, mix_T)
    expected = discovered.stem_scores(stems_KT, sources_ST[:2], mix_T)
    assert scores == expected | {"si_sdri": [None, *expected["si_sdri"]]}
    nothing = discovered.stem_scores(stems_KT, np.zeros_like(sources_ST), mix_T)
    assert nothing["si_sdri"] == [None] * 3 and nothing["penalised_si_sdr"] == -30


def test_every_source_of_a_clip_can_be_found():
    def source(name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name)

    talk, dog = [source("woman talking"), source("water pouring")], [source("dog")]
    clips = [SimpleNamespace(sources=own) for own in (talk, dog)]
    named = discovered._named(clips, ["A woman talks as water pours", "A dog barks"])
    assert named == [["woman talking"], ["water pouring"], ["dog", "A dog barks"]]


def test_summary_of_two_mixtures():
    found = {
        "said": ["a", "b"], "true": ["a", "b"], "matched": [(0, 1), (1, 0)],
        "si_sdri": [6.0, 8.0], "si_sdri_true_queries": [8.0, 8.0], "penalised_si_sdr": 4.0,
        "over_separated": 0.0, "under_separated": 0.0,
    }  # fmt: skip
    missed = {
        "said": ["a", "c", "d"], "true": ["a", "b"], "matched": [(0, 0)],
        "si_sdri": [4.0, 0.0], "si_sdri_true_queries": [6.0, 6.0], "penalised_si_sdr": -8.0,
        "over_separated": 0.5, "under_separated": 0.5,
    }  # fmt: skip
    row = discovered.summary([found, missed])
    means = {name: value.mean for name, value in row.items() if hasattr(value, "mean")}
    assert means == pytest.approx(
        {
            "precision": 2 / 3, "recall": 0.75, "count_error": 0.5, "count_bias": 0.5,
            "exact": 0.5, "over_separated": 0.25, "under_separated": 0.25, "si_sdri": 4.5,
            "si_sdri_true_queries": 7.0, "penalised_si_sdr": -2.0, "loss": 1.0,
        }
    )  # fmt: skip
    assert (row["mixtures"], row["all_found"]) == (2, 1)
    assert (row["si_sdri"].low, row["si_sdri"].high) == (2.0, 7.0)
    assert "| 2 | 2 | 0.67 [0.33, 1.00] |" in discovered.markdown([row | {"sources": 2}])


class Ear:
    """Always hears the same."""

    id, sample_rate_hz, window_s, padding = "ear", 16000, 0.25, "zeros"

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        return ["A hum while clicks occur and a dog barks"] * len(waves_BT)


def test_the_door(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(evaluate, "load_captioner", lambda **_: Captioner(Ear()))
    monkeypatch.setattr(evaluate, "load_parser", lambda **_: Parser(None, letter_bank(), {}))
    flags = [
        "--queries", "discovered", "--checkpoint", shared_checkpoint(), "--data", tiny_dataset,
        "--out", tmp_path, "--mixtures", 6, "--seconds", 0.25, "--num_sources", 2,
        "--min_energy_share", 0, "--baselines", "mixture", "--measures", "si_sdr",
    ]  # fmt: skip
    argv = [str(flag) for flag in flags]
    assert run(evaluate.main, evaluate.parser(), (RecordError, ValueError), argv) == 0
    items = [json.loads(line) for line in (tmp_path / "discovered.jsonl").read_text().splitlines()]
    assert len(items) == 6 and all(len(item["si_sdri"]) == 2 for item in items)
    said = [item["said"] for item in items]
    assert said == [said[0]] * 6 and {"hum", "dog barking"} < set(said[0])
    (row,) = json.loads((tmp_path / "results.json").read_text())["discovered"]
    hits = sum(len({"hum", "clicks"} & set(item["true"])) for item in items)
    assert hits and row["recall"] == pytest.approx(hits / 12, abs=1e-4) and row["count_error"] == 1
    assert (tmp_path / "results.md").read_text() in capsys.readouterr().out
    with (tmp_path / "discovered.csv").open() as stream:
        (plain,) = csv.DictReader(stream)
    assert float(plain["recall"]) == row["recall"]
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert "2_sources/discovered/recall" in tags
