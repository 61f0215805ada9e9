"""Scores of what was found: pairing of stems, missed sources, names, and the door's files."""

import json
from pathlib import Path

import numpy as np
import pytest

from opensep_jax import discovered, evaluate
from opensep_jax.cli import run
from opensep_jax.data.records import RecordError
from opensep_jax.text.caption import Captioner
from opensep_jax.text.parse import Parser
from tests.scripted_model import letter_bank
from tests.tiny_checkpoint import shared_checkpoint


def test_stems_are_paired_and_missed_sources_count_as_nothing(noise_T: np.ndarray):
    sources_ST = np.stack([noise_T, np.roll(noise_T, 7), np.roll(noise_T, 99)])
    mix_T = sources_ST.sum(0)
    stems_KT = sources_ST[[2, 0]] + 0.1 * sources_ST[[1, 1]]
    improvement = discovered._matched_improvement(stems_KT, sources_ST, mix_T)
    np.testing.assert_allclose(improvement, [23, 0, 23], atol=0.4)  # 20 dB from -3 dB
    assert discovered._matched_improvement(stems_KT[:0], sources_ST, mix_T) == [0.0] * 3


def test_summary_of_two_mixtures():
    found = {
        "said": ["a", "b"], "true": ["a", "b"], "matched": [(0, 1), (1, 0)],
        "si_sdri": [6.0, 8.0], "si_sdri_true_queries": [8.0, 8.0],
    }  # fmt: skip
    missed = {
        "said": ["a", "c", "d"], "true": ["a", "b"], "matched": [(0, 0)],
        "si_sdri": [4.0, 0.0], "si_sdri_true_queries": [6.0, 6.0],
    }  # fmt: skip
    row = discovered.summary([found, missed])
    assert (row["precision"], row["recall"], row["count_error"]) == (0.6, 0.75, 0.5)
    assert (row["exact"], row["all_found"], row["loss_db"]) == (0.5, 1, 1.0)
    assert (row["si_sdri_db"], row["si_sdri_true_queries_db"]) == (4.5, 7.0)
    assert row["si_sdri_error_db"] == pytest.approx(2.5)
    assert "| 2 | 0.60 | 0.75 | 0.50 | 0.50 | 4.50 +- 2.50 |" in discovered.markdown(
        [row | {"sources": 2}]
    )


class Ear:
    """Always hears the same."""

    id, sample_rate_hz, window_s, padding = "ear", 16000, 0.25, "zeros"

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        return ["A hum while clicks occur and a dog barks"] * len(waves_BT)


def test_the_door(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(evaluate, "load_captioner", lambda **_: Captioner(Ear()))
    monkeypatch.setattr(evaluate, "load_parser", lambda **_: Parser(None, letter_bank(), {}))
    flags = [
        "--discover", "--checkpoint", shared_checkpoint(), "--data", tiny_dataset,
        "--out", tmp_path, "--mixtures", 6, "--seconds", 0.25, "--num_sources", 2,
        "--min_energy_share", 0,
    ]  # fmt: skip
    argv = [str(flag) for flag in flags]
    assert run(evaluate.main, evaluate.parser(), (RecordError, ValueError), argv) == 0
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(items) == 6 and all(len(item["si_sdri"]) == 2 for item in items)
    said = [item["said"] for item in items]
    assert said == [said[0]] * 6 and {"hum", "dog barking"} < set(said[0])
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    hits = sum(len({"hum", "clicks"} & set(item["true"])) for item in items)
    assert hits and row["recall"] == pytest.approx(hits / 12) and row["count_error"] == 1
    assert (tmp_path / "results.md").read_text() in capsys.readouterr().out
