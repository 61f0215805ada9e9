"""The door `evaluate`: files, the same scores as a plain computation, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from opensep_jax import evaluate
from opensep_jax.api import load_separator
from opensep_jax.cli import run
from opensep_jax.data.lists import list_mixtures, pad_texts, render, text_ids
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.separator import separate
from opensep_jax.training.validation import mean_and_error
from tests.tiny_checkpoint import shared_checkpoint


def _evaluate(*argv: object) -> int:
    flags = ["--checkpoint", shared_checkpoint(), "--mixtures", 10, "--seconds", 0.25, *argv]
    return run(
        evaluate.main, evaluate.parser(), (RecordError, ValueError), [str(flag) for flag in flags]
    )


@pytest.fixture(scope="module")
def results(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    assert _evaluate("--data", tiny_dataset, "--out", out, "--num_sources", "2,3") == 0
    return out


def _si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    estimate, reference = (x.astype(np.float64) - x.mean() for x in (estimate, reference))
    target = reference * (estimate @ reference) / (reference @ reference)
    return 10 * np.log10((target @ target) / np.sum((estimate - target) ** 2))


def test_scores_equal_a_plain_computation(results: Path, tiny_dataset: Path):
    lines = [json.loads(line) for line in (results / "items.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 2 * 10  # numbers of sources x wordings x mixtures
    item = next(x for x in lines if (x["sources"], x["item"], x["wording"]) == (3, 4, "label"))
    _, net, params = load_separator(shared_checkpoint())
    dataset = PreparedDataset(tiny_dataset, "val")
    mixture = list_mixtures(dataset, 10, 3, seed=0)[4]
    assert item["clips"] == [dataset.clips[i].path for i in mixture.clips]
    sources_ST = render(dataset, mixture, 4000, 2.5)
    states = [dataset.text.states(i) for i in text_ids(dataset, mixture, "label")]
    text, mask = pad_texts(states, 64)
    real = np.ones((1, 3), bool)
    mix_BCT = sources_ST.sum(0)[None, None]
    for rule in ("none", "limit", "normalise"):
        stems = separate(net, params, mix_BCT, text[None], mask[None], real, rule)[0, :, 0]
        expected = [
            _si_sdr(np.asarray(stem), source) - _si_sdr(mix_BCT[0, 0], source)
            for stem, source in zip(stems, sources_ST, strict=True)
        ]
        np.testing.assert_allclose(item[f"si_sdri_{rule}"], expected, atol=0.02)


def test_table_has_means_and_standard_errors(results: Path):
    rows = json.loads((results / "results.json").read_text())["rows"]
    lines = [json.loads(line) for line in (results / "items.jsonl").read_text().splitlines()]
    row = next(
        r for r in rows if (r["sources"], r["wording"], r["masks"]) == (2, "caption", "limit")
    )
    values = np.array(
        [x["si_sdri_limit"] for x in lines if (x["sources"], x["wording"]) == (2, "caption")]
    )
    means = values.mean(1)
    assert row["si_sdri_db"] == pytest.approx(means.mean(), abs=2e-3)
    assert row["si_sdri_error_db"] == pytest.approx(means.std(ddof=1) / np.sqrt(10), abs=2e-3)
    assert f"| {row['si_sdri_db']:.2f} +- {row['si_sdri_error_db']:.2f} |" in (
        results / "results.md"
    ).read_text().replace("\n", "\n ")


def test_same_scores_in_other_batches(results: Path, tiny_dataset: Path, tmp_path: Path):
    assert _evaluate("--data", tiny_dataset, "--out", tmp_path, "--batch", 16) == 0
    a, b = (json.loads((f / "results.json").read_text())["rows"] for f in (results, tmp_path))
    for row_a, row_b in zip(a, b, strict=True):
        assert row_a["si_sdri_db"] == pytest.approx(row_b["si_sdri_db"], abs=2e-3)


def test_mean_and_error_of_known_numbers():
    assert mean_and_error(np.array([[1.0, 3.0], [4.0, 4.0]])) == (3.0, 1.0)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_sources", "1"], "at least 2 sources"),
        (["--num_sources", "two"], "numbers separated by commas"),
        (["--wordings", "caption,shout"], "shout"),
        (["--split", "test"], "no split 'test'"),
        (["--num_sources", "9"], "families"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--batch", "0"], "--batch 0 must be positive"),
        (["--mixtures", "0"], "--mixtures 0 must be positive"),
        (["--seconds", "-1"], "--seconds -1.0 must be positive"),
        (["--level_db", "nan"], "--level_db nan must not be negative"),
        (["--seed", "-1"], "--seed -1 must not be negative"),
    ],
)
def test_what_cannot_run_is_named(
    flags: list[str], message: str, tiny_dataset: Path, tmp_path: Path, capsys
):
    assert _evaluate("--data", tiny_dataset, "--out", tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
