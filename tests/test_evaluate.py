"""The door `evaluate`: the same scores as a plain computation, however the work is cut up."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from opensep_jax import evaluate
from opensep_jax.api import load_separator
from opensep_jax.checkpoint import shipped
from opensep_jax.cli import run
from opensep_jax.data.lists import list_mixtures, pad_texts, render, text_ids
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.evaluation.systems import load_system
from opensep_jax.sharding import make_mesh
from tests.signal_path import separate
from tests.tiny_checkpoint import SAMPLE_RATE_HZ, random_params, shared_checkpoint
from tests.tiny_dataset import prepare_folder

RUN = ["--mixtures", 10, "--seconds", 0.25, "--num_sources", 2, "--measures", "si_sdr,snr"]


def _argv(*argv: object) -> list[str]:
    given = [] if "--checkpoint" in argv else ["--checkpoint", shared_checkpoint()]
    return [str(flag) for flag in (*given, *RUN, *argv)]


def _evaluate(*argv: object) -> int:
    return run(evaluate.main, evaluate.parser(), (RecordError, ValueError), _argv(*argv))


def _lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]


def _rows(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["rows"]


def _row(line: dict, **wanted: str) -> dict:
    (row,) = (row for row in line["scores"] if wanted.items() <= row.items())
    return row


@pytest.fixture(scope="module")
def results(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    assert _evaluate("--data", tiny_dataset, "--out", out) == 0
    return out


def _si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    estimate, reference = (x.astype(np.float64) - x.mean() for x in (estimate, reference))
    target = reference * (estimate @ reference) / (reference @ reference)
    return 10 * np.log10((target @ target) / np.sum((estimate - target) ** 2))


def test_scores_equal_a_plain_computation(results: Path, tiny_dataset: Path):
    lines = _lines(results)
    assert [(x["sources"], x["item"]) for x in lines] == [(2, i) for i in range(10)]
    line = lines[4]
    _, net, params = load_separator(shared_checkpoint())
    dataset = PreparedDataset(tiny_dataset, "val")
    mixture = list_mixtures(dataset, 10, 2, seed=0)[4]
    assert line["clips"] == [dataset.clips[i].path for i in mixture.clips]
    sources_ST = render(dataset, mixture, 4000, 2.5)
    states = [dataset.text.states(i) for i in text_ids(dataset, mixture, "label")]
    text, mask = pad_texts(states, 64)
    mix_BCT = sources_ST.sum(0)[None, None]
    before = [_si_sdr(mix_BCT[0, 0], source) for source in sources_ST]
    np.testing.assert_allclose(_row(line, system="mixture")["si_sdr"], before, atol=2e-3)
    for rule in ("limit", "normalise"):
        real = np.ones((1, 2), bool)
        stems = separate(net, params, mix_BCT, text[None], mask[None], real, rule=rule)
        pairs = zip(np.asarray(stems[0, :, 0]), sources_ST, strict=True)
        expected = [_si_sdr(stem, source) for stem, source in pairs]
        np.testing.assert_allclose(
            _row(line, query="label", masks=rule)["si_sdr"], expected, atol=0.02
        )


def test_the_table_has_every_system_with_its_interval(results: Path):
    rows, lines = _rows(results), _lines(results)
    assert len(rows) == 3 + 2 * 2  # baselines; queries times mask rules
    wanted = {"query": "caption", "masks": "limit"}
    (row,) = (row for row in rows if wanted.items() <= row.items())
    values = np.array([_row(line, query="caption", masks="limit")["si_sdr"] for line in lines])
    before = np.array([_row(line, system="mixture")["si_sdr"] for line in lines])
    means = (values - before).mean(1)
    assert row["si_sdri"] == pytest.approx(means.mean(), abs=2e-3)
    error = means.std(ddof=1) / np.sqrt(10)
    assert row["si_sdri_high"] - row["si_sdri_low"] == pytest.approx(2 * 1.96 * error, rel=0.35)
    by_system = {r["system"]: r["si_sdri"] for r in rows}
    assert by_system["mixture"] == 0 and by_system["irm"] > 5 and by_system["ibm"] > 5
    cell = f"{row['si_sdri']:.2f} [{row['si_sdri_low']:.2f}, {row['si_sdri_high']:.2f}]"
    assert cell in (results / "results.md").read_text()
    with (results / "results.csv").open() as stream:
        found = [r for r in csv.DictReader(stream) if r["query"] == "caption"]
    assert float(found[0]["si_sdri"]) == row["si_sdri"]
    board = EventAccumulator(str(results)).Reload()
    tag = next(t for t in board.Tags()["scalars"] if t.endswith("caption_limit/all/si_sdri"))
    (event,) = board.Scalars(tag)
    assert event.step == 7 and event.value == pytest.approx(row["si_sdri"], rel=1e-5)


def test_a_killed_run_goes_on_to_the_same_numbers(results: Path, tiny_dataset: Path, tmp_path):
    shutil.copy(results / "evaluation.json", tmp_path)
    whole = (results / "items.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "items.jsonl").write_text("".join(lines[:9]) + lines[9][:40])
    assert _evaluate("--data", tiny_dataset, "--out", tmp_path) == 0
    assert (tmp_path / "items.jsonl").read_text() == whole
    assert _rows(tmp_path) == _rows(results)


def test_shards_together_give_the_whole(results: Path, tiny_dataset: Path, tmp_path: Path):
    for shard in (0, 1):
        assert not (tmp_path / "results.json").exists()
        flags = ["--num_shards", 2, "--shard", shard]
        assert _evaluate("--data", tiny_dataset, "--out", tmp_path, *flags) == 0
    assert (tmp_path / "items.jsonl").read_text() == (results / "items.jsonl").read_text()
    assert _rows(tmp_path) == _rows(results)


@pytest.mark.slow
def test_two_processes_at_the_same_time(results: Path, tiny_dataset: Path, tmp_path: Path):
    command = [sys.executable, "-m", "opensep_jax.evaluate", *_argv("--data", tiny_dataset)]
    command += ["--out", str(tmp_path), "--num_shards", "2", "--shard"]
    running = [subprocess.Popen([*command, shard], stderr=subprocess.PIPE) for shard in "01"]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    for ours, expected in zip(_rows(tmp_path), _rows(results), strict=True):
        assert ours["si_sdr"] == pytest.approx(expected["si_sdr"], abs=2e-3)


def test_one_device_gives_the_scores_of_eight(
    results: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    assert _evaluate("--data", tiny_dataset, "--out", tmp_path) == 0
    for row, other in zip(_rows(tmp_path), _rows(results), strict=True):
        assert row["si_sdr"] == pytest.approx(other["si_sdr"], abs=2e-3)
        assert row["snri"] == pytest.approx(other["snri"], abs=2e-3)


def test_a_folder_of_another_evaluation_is_refused(results: Path, tiny_dataset: Path, capsys):
    assert _evaluate("--data", tiny_dataset, "--out", results, "--seed", 5) == 2
    assert "holds another evaluation (lists differ)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_the_log_of_a_training_run_stays(tiny_dataset: Path, tmp_path: Path, name: str, capsys):
    (tmp_path / name).write_text("of a run")
    assert _evaluate("--data", tiny_dataset, "--out", tmp_path) == 2
    assert f"holds a training run ({name}); use another --out" in capsys.readouterr().err
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "of a run")]


def test_other_words_for_the_same_sounds_are_another_evaluation(
    results: Path, tiny_sounds: Path, tiny_encoder: Path, tmp_path: Path, capsys
):
    root, out = tmp_path / "root", tmp_path / "records"
    shutil.copytree(tiny_sounds, root)
    manifest = (root / "manifest.csv").read_text()
    (root / "manifest.csv").write_text(manifest.replace("The sound of", "A recording of"))
    assert prepare_folder(root, out, tiny_encoder) == 0
    assert _evaluate("--data", out, "--out", results) == 2
    assert "holds another evaluation (data differ)" in capsys.readouterr().err
    train = ["--data", out, "--out", tmp_path / "a", "--baselines", "mixture", "--train_data"]
    assert _evaluate(*train, out) == 0
    assert _evaluate(*train, out, "--train_split", "train,train") == 2
    assert "(train_data differ)" in capsys.readouterr().err


def test_several_splits_are_scored_as_one(tiny_dataset: Path, tmp_path: Path):
    flags = ["--split", "val,train", "--baselines", "mixture", "--queries", "label"]
    assert _evaluate("--data", tiny_dataset, "--out", tmp_path, *flags) == 0
    takes = {clip[-5] for line in _lines(tmp_path) for clip in line["clips"]}
    assert takes >= {"3", "0"}  # the last one of each sound is in `val`
    assert "split `val,train`" in (tmp_path / "results.md").read_text()


def test_a_list_that_was_written_is_scored_again(results: Path, tiny_dataset: Path, tmp_path: Path):
    file, out = tmp_path / "list.json", tmp_path / "out"
    assert _evaluate("--data", tiny_dataset, "--out", out, "--write_list", file) == 0
    assert not out.exists()
    assert _evaluate("--data", tiny_dataset, "--out", out, "--list", file) == 0
    assert (out / "items.jsonl").read_text() == (results / "items.jsonl").read_text()


PUBLISHED = {  # rows of two mixtures: headline, queries, sources that are scored
    "bimodal_audiocaps": ("bss_sources_512_sdr", "caption"),
    "bimodal_vggsound": ("bss_sources_512_sdr", "paraphrase"),
    "audiosep_esc50": ("snri", "label"),
    "dcase2024_task9": ("snri", "caption"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_protocols_are_followed(name: str, tiny_dataset: Path, tmp_path: Path):
    """Each asks in its own way, and its figure is that of the sources that it scores."""
    headline, query = PUBLISHED[name]
    argv = ["--data", tiny_dataset, "--out", tmp_path / "out", "--protocol", name, "--split", "val"]
    flags = ["--checkpoint", shared_checkpoint(), "--mixtures", "2", "--seconds", "0.25"]
    given = [str(flag) for flag in (*flags, *argv)]
    assert run(evaluate.main, evaluate.parser(), (RecordError, ValueError), given) == 0
    (row,) = (row for row in _rows(tmp_path / "out") if row["query"])
    assert (row["query"], row["masks"]) == (query, "none")
    figure = headline.removesuffix("i")
    rows = [(_row(x, query=query)[figure], _row(x, system="mixture")[figure])
            for x in _lines(tmp_path / "out")]  # fmt: skip
    if headline.endswith("i"):  # the first source's alone
        expected = [own[0] - before[0] for own, before in rows]
    else:
        expected = [np.mean(own) for own, _ in rows]
    assert row[headline] == pytest.approx(np.mean(expected), abs=2e-3)
    assert "Differs: 16000 Hz instead of 32000" in (tmp_path / "out/results.md").read_text() or (
        not name.startswith("audiosep")
    )


def test_improvements_need_the_mixture(tiny_dataset: Path, tmp_path: Path, capsys):
    argv = ["--data", tiny_dataset, "--out", tmp_path / "out", "--baselines", "irm"]
    assert _evaluate(*argv) == 2
    assert "si_sdri, the figure of protocol opensep_jax" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_trained_clips_are_left_out_and_classes_told_apart(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    data = ["--data", tiny_dataset, "--out", tmp_path / "a", "--train_data", tiny_dataset]
    assert _evaluate(*data, "--train_split", "val") == 2
    assert "has 0 families of sounds" in capsys.readouterr().err
    monkeypatch.setattr(evaluate, "names_of", lambda _: frozenset({"Hums", "a low tone"}))
    assert _evaluate(*data, "--baselines", "mixture") == 0
    assert json.loads((tmp_path / "a" / "results.json").read_text())[
        "clips_left_out_as_trained_on"
    ] == 0  # fmt: skip
    lines = _lines(tmp_path / "a")
    for line in lines:
        assert line["seen"] == [name in ("hum", "low tone") for name in line["names"]]
    rows = {row["group"]: row for row in _rows(tmp_path / "a") if row["masks"] == "limit"}
    values = [
        np.mean([v for v, seen in zip(_row(x, query="label", masks="limit")["snr"], x["seen"],
                                      strict=True) if not seen])
        for x in lines if not all(x["seen"])
    ]  # fmt: skip
    assert set(rows) == {"all", "seen", "unseen"}
    assert rows["unseen"]["snr"] == pytest.approx(np.mean(values), abs=2e-3)


@pytest.fixture(scope="module")
def blind_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network without text, of random weights and two outputs."""
    config = {
        "schema": 1, "task": "unconditional", "model": {"size": "debug", "dtype": "float32"},
        "stft": {"n_fft_samples": 128, "hop_samples": 64}, "sample_rate_hz": SAMPLE_RATE_HZ,
        "prompts": {"outputs": 2, "width": 16},
    }  # fmt: skip
    rng = np.random.default_rng(0)
    params = {
        "net": random_params(config | {"text_encoder": {"width": 16}}),
        "prompts": rng.standard_normal((2, 16)).astype(np.float32),
    }
    folder = tmp_path_factory.mktemp("blind") / "checkpoint"
    shipped.export(folder, params, config)
    return folder


def test_a_network_without_text_is_scored_by_its_best_permutation(
    blind_checkpoint: Path, tiny_dataset: Path, tmp_path: Path
):
    flags = ["--checkpoint", blind_checkpoint, "--masks", "none", "--baselines", "mixture"]
    flags += ["--num_sources", "2,3"]
    assert _evaluate("--data", tiny_dataset, "--out", tmp_path, *flags) == 0
    lines = _lines(tmp_path)
    assert all(len(line["scores"]) == 1 for line in lines[10:])  # three sources, but two outputs
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    system = load_system(str(blind_checkpoint), mesh)
    dataset = PreparedDataset(tiny_dataset, "val")
    for item in (0, 3):
        sources = render(dataset, list_mixtures(dataset, 10, 2, seed=0)[item], 4000, 2.5)
        stems = np.asarray(system.separate(sources[None], {}, ("none",))["none"])[0]
        orders = [
            [_si_sdr(stems[a], sources[0]), _si_sdr(stems[1 - a], sources[1])] for a in (0, 1)
        ]
        best = max(orders, key=sum)
        np.testing.assert_allclose(lines[item]["scores"][1]["si_sdr"], best, atol=0.02)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_sources", "1"], "at least 2 sources"),
        (["--num_sources", "two"], "numbers separated by commas"),
        (["--queries", "caption,shout"], "queries shout not known; known: caption, label"),
        (["--masks", "soft"], "masks soft not known"),
        (["--measures", "sdr"], "measures sdr not known; known: si_sdr, snr, bss_sources_512"),
        (["--baselines", "silence"], "--baselines silence not known; known: mixture, irm, ibm"),
        (["--split", "test"], "no split 'test'"),
        (["--num_sources", "9"], "families"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--protocol", "musdb"], "protocol 'musdb' is no file; known: audiosep_audiocaps"),
        (["--list", "nothing.json"], "list nothing.json cannot be read"),
        (["--batch", "0"], "--batch 0 must be positive"),
        (["--batch", "3"], "--batch 3 is not divisible by the 8 devices"),
        (["--mixtures", "0"], "mixtures 0 must be positive"),
        (["--seconds", "-1"], "seconds -1.0"),
        (["--level_db", "nan"], "range_db (nan, nan)"),
        (["--seed", "-1"], "--seed -1 must not be negative"),
        (["--shard", "1"], "--shard 1 is not within --num_shards 1"),
    ],
)
def test_what_cannot_run_is_named(
    flags: list[str], message: str, tiny_dataset: Path, tmp_path: Path, capsys
):
    assert _evaluate("--data", tiny_dataset, "--out", tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
