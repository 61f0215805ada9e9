"""Lists of validation mixtures: fixed, fair, and no two sounds of a family in one mixture."""

import hashlib
import json
from collections import Counter
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from opensep_jax.data import lists
from opensep_jax.data.clip_table import make_table
from opensep_jax.data.cutting import CutCounts, cut_file
from opensep_jax.data.records import PreparedDataset, RecordError
from tests.tiny_dataset import FAMILIES


@pytest.fixture(scope="module")
def dataset(tiny_dataset) -> PreparedDataset:
    return PreparedDataset(tiny_dataset, "val")


def _names(dataset, mixture) -> list[str]:
    return [dataset.clips[clip].sources[0].name for clip in mixture.clips]


@pytest.mark.parametrize("sources", [2, 3, 6])
def test_families_never_meet_and_classes_count_alike(dataset, sources):
    family = {label: name for name, labels in FAMILIES.items() for label in labels}
    mixtures = lists.list_mixtures(dataset, 300, sources, seed=1)
    seen = Counter()
    for mixture in mixtures:
        names = _names(dataset, mixture)
        assert len({family.get(name, name) for name in names}) == len(names) == sources
        seen.update(names)
    if sources < 6:
        assert min(seen.values()) > 0.6 * 300 * sources / 8


def test_the_same_list_whenever_it_is_made_and_however_long(dataset):
    first = lists.list_mixtures(dataset, 20, 3, seed=1)
    np.random.seed(0)
    lists.list_mixtures(dataset, 5, 2, seed=1)
    assert lists.list_mixtures(dataset, 20, 3, seed=1) == first
    assert lists.list_mixtures(dataset, 7, 3, seed=1) == first[:7]
    assert lists.list_mixtures(dataset, 20, 3, seed=2) != first
    a, b = (lists.render(dataset, first[0], 8000, 2.5) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    # A golden item: lists of published scores must not change with the code.
    assert _names(dataset, first[0]) == ["high tone", "clicks", "falling chirp"]


def test_clips_of_several_sources_are_left_out():
    clips = [(1, [0, 1]), (1, [0]), (1, [1]), (1, [2])]
    table = make_table(clips, [(name, {}) for name in "abc"])
    dataset = SimpleNamespace(info={"families": {}}, table=table, folder="here", split="val")
    mixtures = lists.list_mixtures(dataset, 50, 2, seed=0)
    assert {clip for mixture in mixtures for clip in mixture.clips} == {1, 2, 3}
    with pytest.raises(RecordError, match="split val has 3 families of sounds; mixtures of 4"):
        lists.list_mixtures(dataset, 1, 4, seed=0)


def test_too_few_families_are_refused(dataset):
    with pytest.raises(RecordError, match="6 families of sounds; mixtures of 7 need as many"):
        lists.list_mixtures(dataset, 1, 7, seed=0)


def test_levels_stay_within_the_range_and_below_full_scale(dataset):
    spread, loudest = [], []
    for mixture in lists.list_mixtures(dataset, 100, 2, seed=3):
        sources_ST = lists.render(dataset, mixture, 20_000, 2.5)
        assert sources_ST.shape == (2, 20_000) and sources_ST.dtype == np.float32
        rms_S = np.sqrt(np.mean(sources_ST.astype(np.float64) ** 2, axis=-1))
        spread.append(20 * np.log10(rms_S[0] / rms_S[1]))
        loudest.append(20 * np.log10(rms_S.max() / 0.1))
        assert np.abs(sources_ST.sum(0)).max() <= 0.9 + 1e-6
    assert max(np.abs(spread)) < 5.0 + 1e-3 and np.std(spread) > 1.5
    assert max(loudest) < 2.5 + 1e-3
    (same,) = lists.list_mixtures(dataset, 1, 2, seed=4)
    rms_S = np.sqrt(np.mean(lists.render(dataset, same, 20_000, 0.0) ** 2, axis=-1))
    np.testing.assert_allclose(rms_S, rms_S[0], rtol=1e-5)


def test_texts_of_a_mixture(dataset):
    (mixture,) = lists.list_mixtures(dataset, 1, 3, seed=1)
    prompts = [dataset.text.prompts[i] for i in lists.text_ids(dataset, mixture, "label")]
    assert prompts == _names(dataset, mixture)
    captions = [dataset.text.prompts[i] for i in lists.text_ids(dataset, mixture, "caption")]
    assert captions == [f"The sound of {name}, take 1." for name in prompts]
    with pytest.raises(RecordError, match=r"has no prompt of kind 'description', only caption,"):
        lists.text_ids(dataset, mixture, "description")


def test_padded_texts_keep_their_states():
    states = [np.full((n, 2), n, np.float32) for n in (3, 1, 5)]
    padded, mask = lists.pad_texts(states, 6)
    assert padded.shape == (3, 6, 2) and padded.dtype == np.float32
    assert mask.sum(1).tolist() == [3, 1, 5]
    for row, states_LC in enumerate(states):
        np.testing.assert_array_equal(padded[row][mask[row]], states_LC)
        assert not padded[row][~mask[row]].any()


def test_a_written_list_gives_the_same_mixtures_and_names_what_is_missing(dataset, tmp_path):
    mixtures = {n: lists.list_mixtures(dataset, 5, n, seed=2) for n in (2, 3)}
    lists.write_list(tmp_path / "list.json", dataset, mixtures)
    assert lists.read_list(str(tmp_path / "list.json"), dataset) == mixtures
    assert lists.digest(dataset, mixtures[2]) != lists.digest(dataset, mixtures[2][::-1])
    train = PreparedDataset(dataset.folder, "train")
    with pytest.raises(RecordError, match=r"8 of 8 clips are not in split train .* the first is "):
        lists.read_list(str(tmp_path / "list.json"), train)


def test_partners_may_be_of_any_family_or_any_clip(dataset):
    names = [set(_names(dataset, m)) for m in lists.list_mixtures(dataset, 60, 7, 0, "names")]
    assert all(len(own) == 7 for own in names)
    without = frozenset(range(4))
    chosen = lists.list_mixtures(dataset, 60, 3, 0, "any", without)
    assert {clip for m in chosen for clip in m.clips} == set(range(4, 8))
    assert all(len(set(m.clips)) == 3 for m in chosen)
    with pytest.raises(RecordError, match="8 clips with words; mixtures of 9 need as many"):
        lists.list_mixtures(dataset, 1, 9, 0, "any")
    with pytest.raises(ValueError, match="partners='friends' is not known"):
        lists.list_mixtures(dataset, 1, 2, 0, "friends")


def test_clips_without_words_are_never_drawn():
    table = make_table([(1, [0]), (1, []), (1, [1])], [(name, {}) for name in "ab"])
    dataset = SimpleNamespace(info={}, table=table, folder="here", split="val")
    chosen = lists.list_mixtures(dataset, 20, 2, 0, "any")
    assert {clip for mixture in chosen for clip in mixture.clips} == {0, 2}


def test_a_clip_of_several_sources_is_asked_for_by_its_caption():
    kinds = {"caption": [0], "label": [1]}
    table = make_table([(1, [0, 1]), (1, [0])], [("a", kinds), ("b", {"label": [2]})])
    captions = ["A woman talks as water pours"], ["the caption of a"]
    dataset = SimpleNamespace(
        table=table, clips=[SimpleNamespace(captions=own) for own in captions],
        text=SimpleNamespace(prompts=["the caption of a", "a", "b"]),
    )  # fmt: skip
    mixture = lists.ListedMixture((0, 1), (0,))
    asked = lists.prompts(dataset, mixture, "caption")
    assert asked == [["A woman talks as water pours"], ["the caption of a"]]
    assert lists.prompts(dataset, mixture, "label") == [["a", "b"], ["a"]]


def test_published_levels_and_crops(dataset):
    (mixture,) = lists.list_mixtures(dataset, 1, 2, seed=5)
    raw = [dataset.audio(clip) / np.float32(32768) for clip in mixture.clips]
    both = lists.render_by(dataset, mixture, 4000, "start", "as_recorded", (0.0, 0.0))
    np.testing.assert_allclose(both, np.stack([wave[:4000] for wave in raw]) / 2, rtol=1e-6)
    long = lists.render_by(dataset, mixture, 30_000, "centre", "as_recorded", (0.0, 0.0))
    for row, wave in zip(long, raw, strict=True):  # repeated, no silence
        np.testing.assert_allclose(row[: -len(wave)], row[len(wave) :], rtol=1e-6)
    padded = lists.render_by(dataset, mixture, 30_001, "centre_padded", "as_recorded", (0.0, 0.0))
    for row, wave in zip(padded, raw, strict=True):  # as much silence before as after
        before = (30_001 - len(wave) + 1) // 2
        np.testing.assert_allclose(row, np.pad(wave / 2, (before, 30_001 - len(wave) - before)))
    middle = lists.render_by(dataset, mixture, 400, "centre_padded", "as_recorded", (0.0, 0.0))
    np.testing.assert_array_equal(
        middle, lists.render_by(dataset, mixture, 400, "centre", "as_recorded", (0.0, 0.0))
    )
    for level_db in (-7.0, 12.0):
        first, other = lists.render_by(dataset, mixture, 4000, "start", "snr", (level_db, level_db))
        ratio_db = 10 * np.log10(np.mean(first**2) / np.mean(other**2))
        assert ratio_db == pytest.approx(level_db, abs=1e-3)
        assert np.abs(first + other).max() <= 1


@pytest.mark.slow
def test_the_shipped_list_fits_the_sound_bank():
    """What `prepare` makes of the recordings today is what the list was written for."""
    root = Path(__file__).parents[3] / "shared/data/soundbank"
    if not root.exists():
        pytest.skip(f"{root} is not here")
    file = resources.files("opensep_jax").joinpath("assets/lists/soundbank_val.json")
    for path, start, sha256 in json.loads(file.read_text())["clips"]:
        ((first, pcm_T),) = cut_file(root / path, 16_000, 30.0, CutCounts())
        assert (first, hashlib.sha256(pcm_T.tobytes()).hexdigest()[:32]) == (start, sha256), path


def test_the_shipped_list_is_the_one_that_figures_were_measured_on():
    file = resources.files("opensep_jax").joinpath("assets/lists/soundbank_val.json")
    content = file.read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "9ff9585148601965"
    counts = {n: len(rows) for n, rows in json.loads(content)["mixtures"].items()}
    assert counts == {str(n): 200 for n in range(2, 7)}
