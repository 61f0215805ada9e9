"""MUSIC, VGGSound and AudioCaps from their published layouts to training."""

import importlib
import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from opensep_jax import cli, prepare, tasks, training_run
from opensep_jax.data import pipeline
from opensep_jax.data.pipeline import MixtureExamples, MixtureRule
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.data.union import join_families, open_prepared
from opensep_jax.preparation import stages as preparing
from opensep_jax.text.parse import Parser
from tests import tiny_run
from tests.scripted_model import letter_bank
from tests.tiny_dataset import prepare_folder
from tests.tiny_published import (
    WRITERS,
    cached_encoder,
    prepare_published,
    write_audiocaps,
    write_sound,
)

BATCH = 8


@pytest.fixture(scope="module")
def prepared(tiny_encoder, tmp_path_factory) -> dict[str, Path]:
    """Records of the three data sets; read only."""
    folder = tmp_path_factory.mktemp("published")
    return {name: prepare_published(name, folder, tiny_encoder) for name in WRITERS}


def _prompts(dataset: PreparedDataset, index: int) -> list[dict[str, list[str]]]:
    """Prompts by kind of each source of a clip."""
    text = dataset.text
    return [
        {kind: [text.prompts[text.ids[key]] for key in keys] for kind, keys in s.prompts.items()}
        for s in dataset.clips[index].sources
    ]


# What is in the records


def test_labels_get_their_properties(prepared):
    dataset = PreparedDataset(prepared["vggsound"], "train")
    names = [clip.sources[0].name for clip in dataset.clips]
    (prompts,) = _prompts(dataset, names.index("bird chirping, tweeting"))
    assert prompts["label"] == prompts["caption"] == ["bird chirping, tweeting"]
    assert "The sound of bird chirping, tweeting" in prompts["paraphrase"]
    (description,) = prompts["description"]
    assert description.startswith("bird chirping, tweeting: ") and "frequency" in description
    assert "owl hooting" not in names  # unseen


def test_a_duet_has_two_sources(prepared):
    dataset = PreparedDataset(prepared["music"], "duet")
    assert [source.name for source in dataset.clips[0].sources] == ["flute", "violin"]


def test_captions_become_sources(prepared):
    dataset = PreparedDataset(prepared["audiocaps"], "train")
    by_caption = {clip.captions[0]: i for i, clip in enumerate(dataset.clips)}
    several = dataset.clips[by_caption["Rain falls, and thunder roars"]]
    assert [source.name for source in several.sources] == ["rain falling", "thunder roaring"]
    (single,) = _prompts(dataset, by_caption["A dog barks"])
    assert single["caption"] == ["A dog barks"] and single["label"] == ["dog barking"]
    assert single["description"][-1].startswith("dog barking: ")
    test = PreparedDataset(prepared["audiocaps"], "test")
    assert all(len(clip.captions) == 5 for clip in test.clips)
    alone = [i for i, clip in enumerate(test.clips) if len(clip.sources) == 1]
    assert all(len(_prompts(test, i)[0]["caption"]) == 5 for i in alone) and len(alone) == 4


def test_what_is_missing_is_reported_and_not_fatal(prepared, tmp_path, tiny_encoder, capsys):
    report = json.loads((prepared["vggsound"] / "coverage.json").read_text())
    assert len(report["missing"]) == 6 and report["missing"][0].startswith("-v")
    found = sum(counts["found"] for counts in report["splits"].values())
    info = json.loads((prepared["vggsound"] / "dataset.json").read_text())
    assert found == sum(counts["clips"] for counts in info["splits"].values()) == 42
    summary = json.loads((prepared["audiocaps"] / "summary.json").read_text())
    train = summary["splits"]["train"]
    assert train["clips"] == 30 and train["clips_by_sources"] == {"1": 20, "2": 10}
    assert abs(train["hours"] - 30 * 0.5 / 3600) < 1e-4 and train["rejected"] == {}
    assert summary["names"]["distinct"] == 8 and summary["prompts"]["tokens_mean"] > 10


def test_a_video_that_comes_later_takes_its_place(tmp_path, tiny_encoder, prepared):
    """Nothing else is touched, and a run with all of them gives the same."""
    out = prepare_published("vggsound", tmp_path, tiny_encoder)
    coming = json.loads((out / "coverage.json").read_text())["missing"][0]
    source = next((tmp_path / "vggsound" / "video").iterdir())
    (tmp_path / "vggsound" / f"{coming}.wav").write_bytes(source.read_bytes())
    prepare_published("vggsound", tmp_path, tiny_encoder)
    report = json.loads((out / "coverage.json").read_text())
    assert coming not in report["missing"] and len(report["missing"]) == 5
    info = json.loads((out / "dataset.json").read_text())
    assert sum(counts["clips"] for counts in info["splits"].values()) == 43
    assert json.loads((out / "summary.json").read_text())["splits"]["train"]["duplicates"] in (0, 1)


def test_a_caption_that_comes_later_is_embedded_alone(tmp_path, tiny_encoder, monkeypatch):
    root, late = write_audiocaps(tmp_path / "audiocaps", takes=2), "Qtr0_000000_0.wav"
    rows = (root / "train.csv").read_text()
    (root / "train.csv").write_text(rows.replace("0,A dog barks", "0,A zebra brays", 1))
    (root / "train" / late).rename(tmp_path / late)
    monkeypatch.setattr(preparing, "PROMPTS_PER_SHARD", 10)
    out = prepare_published("audiocaps", tmp_path, tiny_encoder)
    before = PreparedDataset(out, "train")
    states = {key: before.text.states(i) for key, i in before.text.ids.items()}
    embedded, encoder = [], cached_encoder(str(tiny_encoder), 256)
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: embedded.extend(texts) or encode(texts))
    (tmp_path / late).rename(root / "train" / late)
    prepare_published("audiocaps", tmp_path, tiny_encoder)
    after = PreparedDataset(out, "train")
    new = set(after.text.prompts) - set(before.text.prompts)
    assert len(after) == len(before) + 1 and any("zebra" in text for text in new)
    # Of prompts that moved to another shard, some were in shards that are overwritten by then.
    assert new <= set(embedded) and len(embedded) < len(after.text.prompts) / 2
    for key, states_LC in states.items():
        np.testing.assert_array_equal(after.text.states(after.text.ids[key]), states_LC)


def test_other_speeds_and_codecs(tmp_path, tiny_encoder, prepared):
    out = prepare_published(
        "music", tmp_path, tiny_encoder, "--speeds", "1,1.25", "--audio", "flac"
    )
    plain = PreparedDataset(prepared["music"], "train")
    train, val = PreparedDataset(out, "train"), PreparedDataset(out, "val")
    assert len(train) == 2 * len(plain) and len(val) == len(
        PreparedDataset(prepared["music"], "val")
    )
    assert sorted({clip.samples for clip in train.clips}) == [6400, 8000]
    lookup = {clip.path: i for i, clip in enumerate(plain.clips)}
    for i in (0, 1):
        if train.clips[i].samples == 8000:
            same = plain.audio(lookup[train.clips[i].path])
            np.testing.assert_array_equal(train.audio(i), same)


def test_recordings_without_labels_are_captioned(tmp_path, tiny_encoder, monkeypatch, caplog):
    root, captions = tmp_path / "root", tmp_path / "captions.jsonl"
    for name, caption in (("a", "A dog barks"), ("b", "A cat meows and rain falls"), ("c", None)):
        write_sound(root / f"{name}.wav", ord(name), 0)
        if caption:
            line = json.dumps({"input": str(root / f"{name}.wav"), "caption": caption})
            captions.write_text((captions.read_text() if captions.exists() else "") + line + "\n")
    monkeypatch.setattr(prepare, "load_parser", lambda **o: Parser(None, letter_bank(), {}))
    monkeypatch.setattr(prepare, "load_text_encoder", cached_encoder)
    flags = f"--dataset folder --root {root} --text_encoder {tiny_encoder}".split()
    by_label = prepare.parser().parse_args([*flags, "--out", str(tmp_path / "labels")])
    assert prepare.main(by_label) == 1
    assert "a.wav: it has no label; --words captioner needs none" in caplog.text
    flags += ["--out", str(tmp_path / "out"), "--words", "captioner"]
    flags += ["--captioner", f"file:{captions}"]
    assert prepare.main(prepare.parser().parse_args(flags)) == 1
    assert "c.wav: the captioner heard nothing" in caplog.text
    clips = PreparedDataset(tmp_path / "out", "train").clips
    assert [[source.name for source in clip.sources] for clip in clips] == [
        ["dog barking"], ["cat meowing", "rain falling"], [],
    ]  # fmt: skip
    assert clips[1].captions == ["A cat meows and rain falls"]


def test_long_prompts_are_cut_at_a_property_and_counted(tmp_path, tiny_encoder, prepared):
    out = prepare_published("music", tmp_path, tiny_encoder, "--max_tokens", 60)
    prompts = json.loads((out / "summary.json").read_text())["prompts"]
    assert prompts["truncated"] >= 5 and prompts["tokens_longest"] <= 60
    assert json.loads((prepared["music"] / "summary.json").read_text())["prompts"]["truncated"] == 0


def test_inspection_prints_and_plays(prepared, tmp_path, capsys):
    flags = ["--inspect", str(prepared["audiocaps"]), "--split", "train", "--number", "3"]
    code = cli.run(prepare.main, prepare.parser(), (ValueError,), [*flags, "--play", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0 and '"clips_by_sources"' in said
    assert said.count('"record": ') == 3 and '"A dog barks"' in said and '"rms_db": -' in said
    wavs = sorted(file.name for file in tmp_path.glob("*.wav"))
    page = (tmp_path / "index.html").read_text()
    assert len(wavs) == 3 and all(f"data-src='{name}'" in page for name in wavs)
    assert "dog barking" in page
    code = cli.run(prepare.main, prepare.parser(), (ValueError,), ["--inspect", "nowhere"])
    assert code == 2


# Mixes of several data sets


def _union(prepared):
    return open_prepared(",".join(str(prepared[name]) for name in sorted(prepared)), "train")


def _rule(**changes) -> MixtureRule:
    wordings = {"caption": 0.5, "label": 0.3, "paraphrase": 0.1, "description": 0.1}
    fixed = {"samples": 4000, "counts": {2: 0.5, 4: 0.5}, "wordings": wordings, "max_names": 2}
    return MixtureRule(**{**fixed, "balance_labels": True, "seed": 3, **changes})


def _batches(examples, process=0, processes=1, first_step=0, workers=0) -> list[dict]:
    return list(
        pipeline.batches(
            examples, global_batch=BATCH, first_step=first_step, process=process,
            processes=processes, workers=workers, threads=2,
        )
    )  # fmt: skip


def test_a_union_is_its_parts(prepared):
    union = _union(prepared)
    parts = [PreparedDataset(prepared[name], "train") for name in sorted(prepared)]
    assert len(union) == sum(map(len, parts)) and len(union.parts) == 3
    for part, (first, last) in zip(parts, union.parts, strict=True):
        for index in (first, last - 1):
            assert union.clips[index] == part.clips[index - first]
            np.testing.assert_array_equal(union.audio(index), part.audio(index - first))
            ids = union.table.text_ids(union.table.sources(index)[0], "label")
            own = part.table.text_ids(part.table.sources(index - first)[0], "label")
            assert union.text.prompts[ids[0]] == part.text.prompts[own[0]]
            np.testing.assert_array_equal(union.text.states(ids[0]), part.text.states(own[0]))
    assert len(pickle.dumps(union)) < 60_000


def test_the_order_of_a_mix_is_the_same_for_any_number_of_processes(prepared):
    """Example j of step s: for 1, 2 and 4 processes, worker processes, and after resuming."""
    examples = MixtureExamples(_union(prepared), _rule(weights=(1.0, 2.0, 1.0)), 3 * BATCH)
    whole = _batches(examples)
    for processes in (2, 4):
        parts = [_batches(examples, p, processes) for p in range(processes)]
        for step in range(3):
            for name, expected in whole[step].items():
                rows = np.stack([part[step][name] for part in parts], axis=1)
                np.testing.assert_array_equal(rows.reshape(expected.shape), expected)
    for resumed, expected in zip(_batches(examples, 1, 2, first_step=1), whole[1:], strict=True):
        for name in expected:
            np.testing.assert_array_equal(resumed[name], expected[name][1::2])


def test_clips_come_from_each_data_set_by_its_weight(prepared):
    union = _union(prepared)
    starts = [first for first, _ in union.parts]
    weights = (0.2, 0.5, 0.3)
    examples = MixtureExamples(union, _rule(counts={1: 1.0}, weights=weights), 600)
    drawn = Counter(
        int(np.searchsorted(starts, clip, side="right")) - 1
        for i in range(600)
        for clip in examples._draw_clips(np.random.default_rng(i), 1)
    )
    for part, weight in enumerate(weights):
        assert abs(drawn[part] / 600 - weight) < 0.08  # four standard errors
    with pytest.raises(ValueError, match="data.weights=.1.0, 2.0. for 3 data sets"):
        MixtureExamples(union, _rule(weights=(1.0, 2.0)), 1)


def test_data_sets_that_do_not_fit_together_are_named(prepared, tmp_path, tiny_encoder):
    other = prepare_published("music", tmp_path, tiny_encoder, "--sample_rate_hz", 8000)
    with pytest.raises(RecordError, match="different sample_rate_hz do not mix: .*8000"):
        open_prepared(f"{prepared['vggsound']},{other}", "train")
    with pytest.raises(RecordError, match="3 splits .train,val,test. for 2 folders"):
        open_prepared(f"{other},{other}", "train,val,test")


def test_a_damaged_record_stops_or_is_skipped(prepared, tmp_path, caplog):
    intact, out = PreparedDataset(prepared["vggsound"], "train"), tmp_path / "records"
    shutil.copytree(prepared["vggsound"], out)
    shard = out / "clips-train-00000-of-00001.arrayrecord"
    data, audio = bytearray(shard.read_bytes()), intact.audio(0).tobytes()
    data[data.index(audio) + 100] ^= 0xFF
    shard.write_bytes(bytes(data))
    dataset = PreparedDataset(out, "train")
    examples = MixtureExamples(dataset, _rule(), 200)
    hit = []
    for i in range(200):
        try:
            examples[i]
        except RecordError as error:
            assert f"record 0 of split train ({intact.clips[0].path}) is damaged" in str(error)
            hit.append(i)
    assert 5 < len(hit) < 100
    skips = MixtureExamples(dataset, _rule(damaged="skip"), 200)
    whole = MixtureExamples(intact, _rule(), 200)
    for i in range(60):
        expected = whole if i not in hit else skips  # another mixture, the same each time
        for name in skips[i]:
            np.testing.assert_array_equal(skips[i][name], expected[i][name])
        assert (i in hit) != np.array_equal(skips[i]["clips"], whole[i]["clips"])
    assert caplog.text.count("is damaged") == 1  # named once
    with pytest.raises(ValueError, match="data.damaged='ignore' is not known"):
        MixtureExamples(dataset, _rule(damaged="ignore"), 1)


def test_families_can_be_kept_apart(tiny_dataset):
    dataset = PreparedDataset(tiny_dataset, "train")
    families = dataset.info["families"]
    family = {label: name for name, labels in families.items() for label in labels}
    assert family

    def met(apart: bool) -> int:
        examples = MixtureExamples(dataset, _rule(families_apart=apart), 200)
        count = 0
        for i in range(200):
            clips = examples._draw_clips(np.random.default_rng(i), 4)
            names = [family.get(n, n) for n in (dataset.clips[c].sources[0].name for c in clips)]
            count += len(set(names)) < 4
        return count

    assert met(False) > 20 and met(True) == 0


def test_a_union_keeps_apart_what_any_of_its_sets_does():
    first = {"strings": ["violin", "cello"], "dogs": ["bark", "howl"]}
    second = {"bowed": ["violin", "viola"], "birds": ["crow"], "dogs": ["growl", "bark"]}
    assert join_families([first, second]) == {
        "strings": ["violin", "cello", "viola"], "dogs": ["bark", "howl", "growl"],
        "birds": ["crow"],
    }  # fmt: skip
    third = {"reeds": ["oboe"], "wolves": ["howl", "oboe"]}
    assert join_families([third, first])["reeds"] == ["oboe", "howl", "bark"]


def test_a_mixture_can_be_of_one_scene(tiny_sounds, tiny_encoder, tmp_path, monkeypatch):
    scenes = {"tones": ["low tone", "high tone", "hum"], "noises": ["white noise", "clicks", "hum"],
              "small": ["rising chirp"]}  # fmt: skip
    root = shutil.copytree(tiny_sounds, tmp_path / "root")
    (root / "scenes.json").write_text(json.dumps(scenes))
    monkeypatch.setattr(prepare, "load_text_encoder", cached_encoder)
    assert prepare_folder(root, tmp_path / "out", tiny_encoder) == 0
    dataset = PreparedDataset(tmp_path / "out", "train")

    def drawn(balance: bool) -> Counter:
        rule = _rule(counts={3: 1.0}, scenes=True, balance_labels=balance)
        examples = MixtureExamples(dataset, rule, 1)
        rngs = map(np.random.default_rng, range(60))
        mixtures = (examples._draw_clips(rng, 3) for rng in rngs)
        return Counter(
            tuple(sorted(dataset.clips[clip].sources[0].name for clip in m)) for m in mixtures
        )

    for balance in (True, False):
        found = drawn(balance)
        assert set(found) == {tuple(sorted(scenes[name])) for name in ("tones", "noises")}
        assert min(found.values()) > 10
    with pytest.raises(RecordError, match="3 names of any scene in split train, but .* 4 distinct"):
        MixtureExamples(dataset, _rule(scenes=True), 1)


# Training


def _scaled(name: str, folder: Path):
    """A config of the data set with the network and sizes of `debug`."""
    config = importlib.import_module(f"configs.{name}").get_config()
    small = {
        "data.folder": str(folder), "data.threads": 1, "data.crop_s": 0.256, "data.text_tokens": 64,
        "stft.n_fft_samples": 128, "stft.hop_samples": 64, "model.size": "debug",
        "model.dtype": "float32", "eval.mixtures": 3, "eval.seconds": 0.25, "eval.sources": (2,),
        "train.batch": 8, "train.steps": 80, "optim.warmup_steps": 5, "mesh.fsdp_min_size": 2**20,
        "optim.learning_rate": 3e-3,
    }  # fmt: skip
    config.update_from_flattened_dict(small)
    return config


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_the_config_of_a_data_set_reads_its_records(name, prepared):
    task = tasks.build_task(_scaled(name, prepared[name]))
    (batch,) = task.batches(
        steps=1, global_batch=4, first_step=0, process=0, processes=1, workers=0, threads=1
    )
    used = batch["text_id"] >= 0
    assert used[..., 0].all() and used.any(-1).all()
    assert used[..., 1:].any() == (name == "audiocaps")  # clips of several sources


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_training_on_a_data_set_lowers_the_loss(name, prepared):
    config = _scaled(name, prepared[name])
    run = training_run.start(config, jax.devices()[:1])
    step_fn, state, losses = (
        training_run.jit_step(run),
        training_run.first_state(run, _NoCheckpoints()),
        [],
    )
    for batch in run.batches(0):
        state, metrics = step_fn(state, batch, run.constants, run.key)
        losses.append(metrics["loss"])
    losses = np.array(jax.device_get(losses))
    assert np.isfinite(losses).all() and len(losses) == 80
    assert losses[-20:].mean() < losses[:10].mean() - 0.4, (losses[:10], losses[-20:])


class _NoCheckpoints:
    def restore_newest(self, *targets):
        return None


def test_training_mixes_three_data_sets(prepared, tmp_path):
    """Two steps of a run on all of them, by weight."""
    folders = ",".join(str(prepared[name]) for name in sorted(prepared))
    config = tiny_run.tiny_config(folders, data__weights=(1.0, 1.0, 2.0), eval__wording="label")
    task = tasks.build_task(config)
    assert len(task.train.parts) == 3 and task.rule.weights == (1.0, 1.0, 2.0)
    assert set(task.train.info["splits"]) == {"0_train", "1_train", "2_train"}
    assert tasks.describe(config, task)["records"] == task.train.info["splits"]
