"""`prepare`: shared, killed or repeated, the records are the same to the byte."""

import csv
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from opensep_jax import cli, prepare
from opensep_jax.data import records
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.data.shards import prompt_key
from opensep_jax.data.storage import temporary_name
from opensep_jax.preparation import stages as preparing
from opensep_jax.text.embed import load_text_encoder
from tests.tiny_dataset import SOUNDS, prepare_folder
from tests.tiny_text_encoder import write_tiny_bert

FILES = 5  # in a shard: 24 and 8 clips make 5 + 2 shards
PROMPTS = 20


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(preparing, "FILES_PER_SHARD", FILES)
    monkeypatch.setattr(preparing, "PROMPTS_PER_SHARD", PROMPTS)


@pytest.fixture(autouse=True)
def encoder(tiny_encoder: Path, monkeypatch) -> "CountingEncoder":
    """The tiny text encoder, compiled once for all tests here."""
    counting = CountingEncoder(tiny_encoder)
    monkeypatch.setattr(prepare, "load_text_encoder", counting.load)
    return counting


class CountingEncoder:
    """Notes what is embedded."""

    loaded: dict = {}

    def __init__(self, folder: Path):
        self.folder, self.prompts = folder, []

    def load(self, name: str, max_tokens: int):
        key = name, max_tokens
        if key not in self.loaded:
            self.loaded[key] = load_text_encoder(name, max_tokens)
        self.inner = self.loaded[key]
        return self

    def encode(self, prompts):
        self.prompts += prompts
        return self.inner.encode(prompts)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.fixture(scope="module")
def single(tiny_sounds, tiny_encoder, tmp_path_factory) -> Path:
    """The records of one undisturbed run; read only."""
    out = tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "FILES_PER_SHARD", FILES)
        patch.setattr(preparing, "PROMPTS_PER_SHARD", PROMPTS)
        patch.setattr(prepare, "load_text_encoder", CountingEncoder(tiny_encoder).load)
        assert prepare_folder(tiny_sounds, out, tiny_encoder) == 0
    return out


def _content(folder: Path) -> dict[str, bytes]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _times(folder: Path) -> dict[str, int]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in files}


def _run(*flags: object) -> int:
    """As from the command line, errors as exit codes."""
    argv = [str(flag) for flag in ("--dataset", "folder", *flags)]
    return cli.run(prepare.main, prepare.parser(), (RecordError, ValueError), argv)


def _said(capsys, pattern: str) -> None:
    """The last run's log has a line like this."""
    log = capsys.readouterr().err
    assert re.search(pattern, log), log


# What is in the records


def test_files_and_counts(single):
    names = set(_content(single))
    made = {"dataset.json", "plan.json", "summary.json", "coverage.json"}
    assert made < names and not any(".tmp" in name for name in names)
    assert sum(n.startswith("clips") and n.endswith(".index") for n in names) == 5 + 2
    assert sum(n.startswith("stages/") for n in names) == 2 * (5 + 2)
    info = records.read_info(single)
    assert {s: (i["clips"], i["shards"]) for s, i in info["splits"].items()} == {
        "train": (24, 5),
        "val": (8, 2),
    }
    assert info["text_encoder"]["width"] == info["text"]["width"] == 16


def test_clips_are_the_files(single, tiny_sounds):
    dataset = PreparedDataset(single, "train")
    with (tiny_sounds / "manifest.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    for index, clip in enumerate(dataset.clips):
        wave_T, _ = soundfile.read(tiny_sounds / clip.path, dtype="int16")
        assert np.abs(dataset.audio(index) - wave_T.astype(int)).max() <= 1
        row = rows[clip.path]
        assert clip.extra == {"licence": row["licence"]} and row["split"] == "train"
        (source,) = clip.sources
        texts = {
            kind: [dataset.text.prompts[dataset.text.ids[key]] for key in keys]
            for kind, keys in source.prompts.items()
        }
        assert texts["label"] == [row["label"]] and texts["caption"] == [row["caption"]]
        assert len(texts["paraphrase"]) >= 3
    assert {clip.sources[0].name for clip in dataset.clips} == set(SOUNDS)


def test_every_distinct_prompt_is_embedded_once_and_equals_the_encoder(
    tmp_path, tiny_sounds, tiny_encoder, encoder
):
    assert prepare_folder(tiny_sounds, tmp_path, tiny_encoder) == 0
    text = PreparedDataset(tmp_path, "train").text
    assert sorted(encoder.prompts) == sorted(set(encoder.prompts)) == sorted(text.prompts)
    assert len(text.prompts) == 8 * (1 + 2 + 3)  # label, two captions, three templates
    some = text.prompts[:5]
    for prompt, states_LC in zip(some, encoder.inner.encode(some), strict=True):
        text_id = text.ids[prompt_key(prompt, encoder.id)]
        np.testing.assert_array_equal(text.states(text_id), states_LC)


def test_long_stereo_files_of_other_rates_become_several_clips(tmp_path, tiny_encoder):
    root = tmp_path / "root" / "hum"
    root.mkdir(parents=True)
    time_s = np.arange(int(3.7 * 44_100)) / 44_100
    wave_T = np.sin(2 * np.pi * 300 * time_s)
    soundfile.write(root / "a.flac", np.stack([wave_T, 0.5 * wave_T], -1), 44_100)
    rest_T = np.concatenate([wave_T[:60_000], np.zeros(2 * 44_100), wave_T[:20_000]])
    soundfile.write(root / "b.wav", rest_T / 2, 44_100)
    out = tmp_path / "out"
    assert prepare_folder(root.parent, out, tiny_encoder, "--max_seconds", "1.5") == 0
    dataset = PreparedDataset(out, "train")
    clips = (*dataset.clips, *PreparedDataset(out, "val").clips)
    assert [(clip.path, clip.start_samples, clip.samples) for clip in clips] == [
        ("hum/a.flac", 0, 24_000),
        ("hum/a.flac", 24_000, 24_000),  # the rest of 0.7 s is dropped
        ("hum/b.wav", 0, 24_000),  # then silence, then a rest
    ]
    expected_T = 0.75 * np.sin(2 * np.pi * 300 * np.arange(48_000) / 16_000)
    read_T = np.concatenate([dataset.audio(0), dataset.audio(1)]) / 32767
    np.testing.assert_allclose(read_T[800:-800], expected_T[800:-800], atol=2e-3)
    assert {clip.sources[0].name for clip in dataset.clips} == {"hum"}
    short = tmp_path / "short"
    assert prepare_folder(root.parent, short, tiny_encoder, "--max_seconds", "0.5") == 0
    for split, count in (("train", 7), ("val", 4)):
        assert [clip.samples for clip in PreparedDataset(short, split).clips].count(8000) == count


# Shared, killed, repeated


@pytest.mark.parametrize("shards, order", [(2, [0, 1]), (3, [2, 0, 1])])
def test_shares_of_several_processes_are_one_run(
    tmp_path, single, tiny_sounds, tiny_encoder, encoder, shards, order
):
    for shard in order:
        assert not (tmp_path / "dataset.json").exists()
        options = "--num_shards", str(shards), "--shard", str(shard)
        assert prepare_folder(tiny_sounds, tmp_path, tiny_encoder, *options) == 0
    assert _content(tmp_path) == _content(single)
    assert len(encoder.prompts) == len(set(encoder.prompts))


@pytest.mark.slow
def test_processes_of_jax_distributed_share_the_prompts(
    tmp_path, single, tiny_sounds, tiny_encoder
):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    program = (
        "import sys; from opensep_jax import prepare\n"
        "from opensep_jax.preparation import stages as preparing\n"
        f"preparing.FILES_PER_SHARD, preparing.PROMPTS_PER_SHARD = {FILES}, {PROMPTS}\n"
        "prepare.cli()"
    )
    flags = ["--dataset", "folder", "--root", tiny_sounds, "--out", tmp_path, "--num_shards", 2]
    flags += ["--text_encoder", tiny_encoder, "--coordinator_address", f"localhost:{port}"]
    commands = [[sys.executable, "-c", program, *flags, "--shard", i] for i in (0, 1)]
    runs = [
        subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    logs = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], logs
    assert _content(tmp_path) == _content(single)
    assert all("embed: " in log and "were there" in log for log in logs), logs


def test_a_rerun_does_nothing(tmp_path, single, tiny_sounds, tiny_encoder, encoder):
    shutil.copytree(single, tmp_path / "out")
    before = _times(tmp_path / "out")
    assert prepare_folder(tiny_sounds, tmp_path / "out", tiny_encoder) == 0
    assert _times(tmp_path / "out") == before and not encoder.prompts


def test_a_killed_run_goes_on(tmp_path, single, tiny_sounds, tiny_encoder, encoder):
    """Of the last shards only a part or a temporary file is there."""
    out = tmp_path / "out"
    shutil.copytree(single, out)
    (out / "dataset.json").unlink()
    (out / "clips-val-00001-of-00002.index").unlink()  # killed before the index
    gone = temporary_name(out / "clips-val-00000-of-00002.arrayrecord").with_name(
        temporary_name(out / "x").name.replace(str(os.getpid()), "4194305")  # no such process
    )
    shutil.move(out / "clips-val-00000-of-00002.arrayrecord", gone)
    (out / "clips-val-00000-of-00002.index").unlink()
    (out / "stages" / "clips-val-00000-of-00002.cut").unlink()
    (out / "stages" / "clips-val-00000-of-00002.prompts").unlink()
    (out / "text-00002-of-00003.index").unlink()
    redone = {
        f"{stem}.{kind}"
        for stem, kinds in (
            ("clips-val-00000-of-00002", ("arrayrecord", "index")),
            ("stages/clips-val-00000-of-00002", ("cut", "prompts")),
            ("clips-val-00001-of-00002", ("index",)),
            ("text-00002-of-00003", ("arrayrecord", "index")),
        )
        for kind in kinds
    } | {"dataset.json"}
    with pytest.raises(RecordError, match="no dataset.json"):
        PreparedDataset(out, "train")
    before = _times(out)
    assert prepare_folder(tiny_sounds, out, tiny_encoder) == 0
    assert _content(out) == _content(single)
    assert {n for n, t in _times(out).items() if t != before.get(n)} == redone
    assert len(encoder.prompts) == 48 - 2 * PROMPTS


# What is refused


@pytest.mark.parametrize(
    "options, message",
    [
        (("--sample_rate_hz", "8000"), "sample_rate_hz: 16000 there, 8000 now"),
        (("--max_seconds", "4"), "max_seconds: 30.0 there, 4.0 now"),
        (("--max_tokens", "32"), "text_encoder: .*'max_tokens': 128.* there, .*: 32"),
    ],
)
def test_other_options_into_the_same_folder_are_refused(
    tmp_path, single, tiny_sounds, tiny_encoder, capsys, options, message
):
    shutil.copytree(single, tmp_path / "out")
    flags = "--root", tiny_sounds, "--out", tmp_path / "out", "--text_encoder", tiny_encoder
    assert _run(*flags, *options) == 2
    _said(capsys, f"holds records of other options.*{message}")
    assert _content(tmp_path / "out") == _content(single)
    assert _run(*flags) == 0


def test_other_contents_or_encoders_are_refused(
    tmp_path, single, tiny_sounds, tiny_encoder, capsys
):
    shutil.copytree(single, tmp_path / "out")
    root = shutil.copytree(tiny_sounds, tmp_path / "root")
    manifest = root / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("hum, take 0", "hum, again"))
    flags = "--root", root, "--out", tmp_path / "out", "--text_encoder"
    assert _run(*flags, tiny_encoder) == 2
    _said(capsys, "clips_and_wordings_sha256: ")
    other = write_tiny_bert(tmp_path / "encoder", layers=1)
    assert _run(*flags, other) == 2
    _said(capsys, "text_encoder: .* there")


def test_bad_files_are_listed_and_the_good_ones_kept(tmp_path, tiny_sounds, tiny_encoder, capsys):
    root = shutil.copytree(tiny_sounds, tmp_path / "root")
    (root / "hum-0.wav").unlink()
    (root / "hum-1.wav").write_text("This is no sound.")
    (root / "clicks-2.wav").write_bytes(b"")
    soundfile.write(root / "clicks-1.wav", np.zeros(16_000), 16_000)
    nan_T = np.full(16_000, np.nan)
    soundfile.write(root / "white_noise-3.wav", nan_T, 16_000, "FLOAT")
    flags = "--root", root, "--out", tmp_path / "out", "--text_encoder", tiny_encoder
    assert _run(*flags) == 1
    log = capsys.readouterr().err
    for path, why in (
        ("hum-0.wav", "no such file"),
        ("hum-1.wav", "not a"),
        ("clicks-2.wav", "empty"),
        ("clicks-1.wav", "digital silence"),
        ("white_noise-3.wav", "16000 of 16000 samples are NaN"),
    ):
        assert re.search(f"rejected: .*{path}: .*{why}", log), log
    info = records.read_info(tmp_path / "out")
    assert {s: (i["clips"], i["rejected"]) for s, i in info["splits"].items()} == {
        "train": (20, 4),
        "val": (7, 1),
    }
    train = PreparedDataset(tmp_path / "out", "train")
    assert len(train) == 20 and all(train.audio(i).any() for i in range(20))
    before = _times(tmp_path / "out")
    assert _run(*flags) == 1  # said again, and nothing is done
    _said(capsys, "rejected: .*hum-1.wav")
    assert _times(tmp_path / "out") == before


def test_a_repaired_file_is_taken_up(tmp_path, tiny_sounds, tiny_encoder):
    root = shutil.copytree(tiny_sounds, tmp_path / "root")
    good = (root / "clicks-0.wav").read_bytes()
    (root / "clicks-0.wav").write_text("no sound")
    assert prepare_folder(root, tmp_path / "out", tiny_encoder) == 1
    times = _times(tmp_path / "out")
    (root / "clicks-0.wav").write_bytes(good)
    assert prepare_folder(root, tmp_path / "out", tiny_encoder) == 0
    changed = {name for name, time in _times(tmp_path / "out").items() if times[name] != time}
    assert changed == {  # the shard of that file, and the counts
        "clips-train-00000-of-00005.arrayrecord",
        "clips-train-00000-of-00005.index",
        "stages/clips-train-00000-of-00005.cut",
        "dataset.json",
        "summary.json",
    }
    assert prepare_folder(tiny_sounds, tmp_path / "straight", tiny_encoder) == 0
    for name in changed - {"stages/clips-train-00000-of-00005.cut"}:  # it knows the files' times
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_each_share_answers_for_its_own_bad_files(tmp_path, tiny_sounds, tiny_encoder):
    root = shutil.copytree(tiny_sounds, tmp_path / "root")
    (root / "clicks-0.wav").unlink()  # the first of the sorted paths
    codes = []
    for shard in "01":
        options = "--num_shards", "2", "--shard", shard
        codes.append(prepare_folder(root, tmp_path / "out", tiny_encoder, *options))
    assert codes == [1, 0]


def test_a_shard_whose_files_are_all_bad(tmp_path, tiny_sounds, tiny_encoder):
    root = shutil.copytree(tiny_sounds, tmp_path / "root")
    for file in sorted(root.glob("*-3.wav"))[:FILES]:
        file.unlink()
    assert prepare_folder(root, tmp_path / "out", tiny_encoder) == 1
    dataset = PreparedDataset(tmp_path / "out", "val")
    assert len(dataset) == 3 and dataset.audio(2).any()


@pytest.mark.parametrize(
    "options, message",
    [
        (("--root", "nowhere"), "nowhere: no such folder"),
        (("--num_shards", "2", "--shard", "2"), "--shard 2 is not within --num_shards 2"),
        (("--max_seconds", "0"), "--max_seconds and --sample_rate_hz must be positive"),
        (("--sample_rate_hz", "-1"), "--max_seconds and --sample_rate_hz must be positive"),
        (("--max_seconds", "nan"), "--max_seconds and --sample_rate_hz must be positive"),
        (("--max_seconds", "1e-6"), "--max_seconds 1e-06 is less than one sample"),
        (("--max_tokens", "-1"), "--max_tokens -1 has no room for a word"),
    ],
)
def test_a_run_that_cannot_start_says_why(
    tmp_path, tiny_sounds, tiny_encoder, capsys, options, message
):
    flags = "--root", tiny_sounds, "--out", tmp_path / "out", "--text_encoder", tiny_encoder
    assert _run(*flags, *options) == 2
    _said(capsys, message)
    assert not (tmp_path / "out").exists()


def test_a_bad_command_line_exits_with_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        prepare.parser().parse_args(["--dataset", "kazoo", "--root", "x", "--out", "y"])
    assert exit_.value.code == 2 and "invalid choice: 'kazoo'" in capsys.readouterr().err
