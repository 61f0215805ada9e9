"""`Separator`: any length, rate and channel count; nothing lost, nothing compiled twice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from opensep_jax import Separation, Separator
from opensep_jax.checkpoint import shipped
from opensep_jax.discovery import Discovery
from opensep_jax.signal.audio import read_audio
from opensep_jax.text.caption import Captioner
from opensep_jax.text.parse import Parser
from tests.scripted_model import letter_bank
from tests.signal_path import separate
from tests.tiny_checkpoint import SAMPLE_RATE_HZ, shapes_of, shared_checkpoint
from tests.tiny_text_encoder import write_tiny_bert

pytestmark = pytest.mark.usefixtures("compile_once")
QUERIES = ["a dog barks", "cello"]


@pytest.fixture(scope="module")
def separator() -> Separator:
    return Separator.from_pretrained(shared_checkpoint())


def _noise(channels: int, samples: int, seed: int = 0, scale: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((channels, samples))).astype(np.float32)


def _check(separation: Separation, input_CT: np.ndarray) -> None:
    """Shapes, the null test, and shares of energy."""
    assert separation.stems.shape == (2, *input_CT.shape)
    assert separation.residual.shape == input_CT.shape
    assert separation.stems.dtype == separation.residual.dtype == np.float32
    total_CT = separation.stems.sum(0, dtype=np.float64) + separation.residual
    assert np.abs(total_CT - input_CT).max() <= 1e-6 * np.abs(input_CT).max()
    shares = [source.energy_share for source in separation.sources]
    assert all(0 <= share <= 1 for share in shares) and sum(shares) <= 1
    assert [source.name for source in separation.sources] == QUERIES


@pytest.mark.parametrize(
    "channels, samples, rate_hz",
    [
        (1, 1, 16_000),
        (1, 1600, 16_000),
        (2, 20_000, 16_000),
        (8, 700, 1000),
        (1, 40_000, 192_000),
        (3, 9000, 44_100),
        (1, 1, 192_000),
        (1, 1, 1000),
    ],
)
def test_any_input(separator: Separator, channels: int, samples: int, rate_hz: int):
    input_CT = _noise(channels, samples)
    separation = separator.separate(input_CT, rate_hz, QUERIES)
    _check(separation, input_CT)
    assert separation.sample_rate_hz == rate_hz
    above = [note for note in separation.notes if "above 8000 Hz" in note]
    assert len(above) == (rate_hz > 16_000)


def test_the_network_decides_and_prompts_differ(separator: Separator):
    input_CT = _noise(2, 20_000)
    stems = separator.separate(input_CT, SAMPLE_RATE_HZ, QUERIES).stems
    assert np.abs(stems).max((1, 2)).min() > 0.01
    assert np.abs(stems[0] - stems[1]).max() > 1e-3
    swapped = separator.separate(input_CT, SAMPLE_RATE_HZ, QUERIES[::-1]).stems
    np.testing.assert_allclose(swapped[::-1], stems, atol=1e-6)


def test_sound_above_the_band_goes_to_the_residual(separator: Separator):
    tone_CT = 0.5 * np.sin(2 * np.pi * 12_000 * np.arange(48_000) / 48_000)[None]
    separation = separator.separate(tone_CT.astype(np.float32), 48_000, QUERIES)
    assert sum(source.energy_share for source in separation.sources) < 1e-3


@pytest.mark.parametrize("rate_hz", [16_000, 22_050])
def test_silence_stays_silent(separator: Separator, rate_hz: int):
    separation = separator.separate(np.zeros((2, 5000), np.float32), rate_hz, QUERIES)
    assert not separation.stems.any() and not separation.residual.any()
    assert [source.energy_share for source in separation.sources] == [0, 0]


def test_silence_beside_sound_is_finite(separator: Separator):
    input_CT = np.concatenate([np.zeros((1, 20_000), np.float32), _noise(1, 20_000)], axis=1)
    separation = separator.separate(input_CT, SAMPLE_RATE_HZ, QUERIES)
    _check(separation, input_CT)
    assert np.isfinite(separation.stems).all()
    assert np.abs(separation.stems[:, :, :10_000]).max() < 1e-6


@pytest.mark.parametrize("gain", [2.0**-100, 2.0**-12, 2.0**20, 2.0**100])
def test_gain_changes_nothing_but_gain(separator: Separator, gain: float):
    input_CT = _noise(1, 9000, scale=0.5)
    want = separator.separate(input_CT, SAMPLE_RATE_HZ, QUERIES).stems
    scaled_CT = input_CT * np.float32(gain)
    separation = separator.separate(scaled_CT, SAMPLE_RATE_HZ, QUERIES)
    _check(separation, scaled_CT)
    np.testing.assert_allclose(separation.stems / np.float32(gain), want, atol=1e-5)


@pytest.mark.parametrize("gain", [3.3e38, 1e-38, 1e-44])
def test_the_largest_and_the_smallest_floats_stay_finite(separator: Separator, gain: float):
    input_CT = (10 * _noise(2, 9000)).clip(-1, 1) * np.float32(gain)
    separation = separator.separate(input_CT, SAMPLE_RATE_HZ, QUERIES)
    assert np.isfinite(separation.stems).all() and np.isfinite(separation.residual).all()
    total_CT = separation.stems.sum(0, dtype=np.float64) + separation.residual
    np.testing.assert_allclose(total_CT / gain, input_CT / np.float64(gain), atol=1e-6)
    assert all(np.isfinite(source.confidence) for source in separation.sources)


def test_channels_share_the_mask_and_padding_has_none(separator: Separator):
    mono_CT = _noise(1, 9000)
    want = separator.separate(mono_CT, SAMPLE_RATE_HZ, QUERIES).stems
    for channels in (2, 3, 5, 9):  # padded to 2, 4, 8 and twice 8
        many = separator.separate(np.repeat(mono_CT, channels, 0), SAMPLE_RATE_HZ, QUERIES).stems
        np.testing.assert_allclose(many, np.repeat(want, channels, 1), atol=2e-6)


def test_padding_changes_nothing_of_the_signal_path(separator: Separator):
    queries, samples = [*QUERIES, "soft"], separator.engine.windows.window_samples
    input_CT = _noise(3, samples)
    states = separator.engine.encoder.encode(queries)
    length = max(map(len, states))
    text_PLC = np.stack([np.pad(x, ((0, length - len(x)), (0, 0))) for x in states])
    mask_PL = np.arange(length) < np.array([[len(x)] for x in states])
    _, params = shipped.load(shared_checkpoint(), shapes_of)
    want = separate(
        separator.engine.net,
        params,
        input_CT[None],
        text_PLC[None],
        mask_PL[None],
        np.ones((1, 3), bool),
    )
    stems = separator.separate(input_CT, SAMPLE_RATE_HZ, queries).stems
    np.testing.assert_allclose(stems, want[0], atol=2e-6)


def test_windows_do_not_depend_on_their_batch(separator: Separator):
    input_CT = _noise(1, 30_000)
    want = separator.separate(input_CT, SAMPLE_RATE_HZ, QUERIES).stems
    three = Separator.from_pretrained(shared_checkpoint(), batch=3)
    np.testing.assert_allclose(
        three.separate(input_CT, SAMPLE_RATE_HZ, QUERIES).stems, want, atol=2e-6
    )


def test_no_recompilation_per_file(separator: Separator):
    for channels, samples in ((1, 500), (2, 500), (1, 9000), (2, 9000)):  # a quarter, and windows
        separator.separate(_noise(channels, samples), SAMPLE_RATE_HZ, QUERIES)
    before = separator.engine.traces
    for seed, (channels, samples, rate_hz) in enumerate(
        [(1, 1, 8000), (2, 32_345, 44_100), (1, 50_000, 16_000), (2, 777, 192_000)]
    ):
        separator.separate(_noise(channels, samples, seed), rate_hz, ["bark", "the low cello"])
    assert separator.engine.traces == before
    separator.separate(_noise(16, 600), SAMPLE_RATE_HZ, QUERIES)
    assert separator.engine.traces["masks"] == before["masks"]  # it does not see channels
    again = Separator.from_pretrained(shared_checkpoint())
    again.separate(_noise(1, 500), SAMPLE_RATE_HZ, QUERIES)
    assert again.engine.traces["masks"] == before["masks"]


def test_long_prompts_are_cut_and_noted(separator: Separator):
    long = "a low cello, " * 60
    separation = separator.separate(_noise(1, 500), SAMPLE_RATE_HZ, ["dog", long])
    assert separation.notes == (f"prompts cut to {separator.engine.encoder.max_tokens} tokens: 1",)
    again = separator.separate(_noise(1, 500), SAMPLE_RATE_HZ, ["dog", long])
    assert again.notes == separation.notes


@pytest.mark.parametrize(
    "samples, rate_hz, queries, message",
    [
        (np.zeros((1, 0), np.float32), 16_000, QUERIES, r"shape \(1, 0\)"),
        (np.zeros((1, 2, 3), np.float32), 16_000, QUERIES, "need samples"),
        (np.zeros((1, 9), np.int16), 16_000, QUERIES, "float samples .* got int16"),
        (np.full((1, 9), np.nan, np.float32), 16_000, QUERIES, "NaN or infinite"),
        (np.full((1, 9), 1e39), 16_000, QUERIES, "NaN or infinite in float32"),
        (np.zeros((1025, 2), np.float32), 16_000, QUERIES, r"\(1025, 2\): is it \[T, C\]"),
        (np.zeros(9, np.float32), 0, QUERIES, "sample rate, got 0 Hz"),
        (np.zeros(9, np.float32), 16_000, [], "at least one query"),
        (np.zeros(9, np.float32), 16_000, ["dog", " "], "none empty"),
        (np.zeros(9, np.float32), 16_000, "dog", "list of texts"),
        (np.zeros(9, np.float32), 16_000, ["\udcff"], "not valid Unicode"),
    ],
)
def test_bad_arguments_are_refused(separator, samples, rate_hz, queries, message):
    with pytest.raises(ValueError, match=message):
        separator.separate(samples, rate_hz, queries)


def test_a_wave_without_channels_is_mono(separator: Separator):
    wave_T = _noise(1, 3000)[0]
    _check(separator.separate(wave_T, SAMPLE_RATE_HZ, QUERIES), wave_T[None])


def test_another_text_encoder_is_refused(tmp_path: Path):
    other = write_tiny_bert(tmp_path / "other", layers=1)
    with pytest.raises(ValueError, match="was trained with .* bert-2x16-.* is bert-1x16-"):
        Separator.from_pretrained(shared_checkpoint(), text_encoder=str(other))
    elsewhere = write_tiny_bert(tmp_path / "elsewhere")
    moved = Separator.from_pretrained(shared_checkpoint(), text_encoder=str(elsewhere))
    assert moved.models["text_encoder"]["id"].startswith("bert-2x16-")


def test_a_text_encoder_beside_a_checkpoint_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = shutil.copytree(shared_checkpoint(), tmp_path / "imported")
    config = json.loads((folder / "config.json").read_text())
    shutil.copytree(config["text_encoder"]["name"], folder / "own_encoder")
    config["text_encoder"]["name"] = "own_encoder"
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Separator.from_pretrained("~/imported").engine.encoder.id == config["text_encoder"]["id"]


def test_normalised_masks_leave_no_residual(noise_T: np.ndarray):
    normalise = Separator.from_pretrained(shared_checkpoint(), masks="normalise")
    separation = normalise.separate(noise_T, 16000, ["one", "two", "three"])
    assert np.abs(separation.residual).max() < 1e-5 * np.abs(noise_T).max()
    with pytest.raises(ValueError, match="masks='all' is not known; known are limit, normalise"):
        Separator.from_pretrained(shared_checkpoint(), masks="all")


def test_what_is_saved_sums_to_the_input(separator: Separator, tmp_path: Path):
    input_CT = _noise(2, 9000)
    separation = separator.separate(input_CT, 22_050, QUERIES)
    paths = separation.save(tmp_path / "new" / "folder", "wav", "PCM_16")
    assert [path.name for path in paths] == ["01_a-dog-barks.wav", "02_cello.wav", "residual.wav"]
    total_CT = sum(read_audio(path).samples_CT.astype(np.float64) for path in paths)
    np.testing.assert_allclose(total_CT, input_CT, atol=0.51 * 2**-15)
    record = json.loads((tmp_path / "new/folder/separation.json").read_text())
    assert [source["file"] for source in record["sources"]] == [p.name for p in paths[:2]]
    assert record["seconds"] == 9000 / 22_050 and record["clipping"]["samples"] == 0
    with pytest.raises(ValueError, match="format='aiff' is not known"):
        separation.save(tmp_path, "aiff")


def test_a_picture_has_a_row_for_each_part(separator: Separator):
    figure = separator.separate(_noise(1, 9000), SAMPLE_RATE_HZ, QUERIES).plot()
    titles = [axis.get_title(loc="left").partition(":")[0] for axis in figure.axes]
    assert titles == ["mixture", "1 a dog barks", "2 cello", "residual"]
    assert figure.axes[0].images[0].get_array().shape[0] == 513  # bins of 32 ms on each side


def test_sources_that_nobody_named(noise_T: np.ndarray):
    """The captions come from a function; faint stems of heard sources stay in the residual."""

    class Ear:
        id, sample_rate_hz, window_s, padding = "ear", 8000, 1.0, "zeros"

        def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
            return ["a dog barks and rain falls"] * len(waves_BT)

    discovery = Discovery(Captioner(Ear()), Parser(None, letter_bank(), {}))
    separator = Separator.from_pretrained(shared_checkpoint(), discovery=discovery)
    heard = separator.separate(noise_T, SAMPLE_RATE_HZ)
    assert heard.caption == "a dog barks and rain falls"
    assert set(heard.names) <= {"dog barking", "rain falling"}
    np.testing.assert_allclose(heard.mixture[0], noise_T, atol=1e-6)
    for source in heard.sources:  # what the captioner hears in a stem counts, as in `infer`
        assert source.agreement == pytest.approx(1, abs=1e-6)
    empty = separator.separate(noise_T, SAMPLE_RATE_HZ, caption="")
    assert empty.names == heard.names and empty.sources == heard.sources
    assert separator.separate(noise_T, SAMPLE_RATE_HZ, ["dog"], caption="").caption is None
    told = separator.separate(noise_T, SAMPLE_RATE_HZ, caption="a cello plays")
    assert told.names == ["cello"] and told.caption == "a cello plays"
    assert told.sources[0].agreement is None
    silence = separator.separate(np.zeros(500, np.float32), SAMPLE_RATE_HZ)
    assert silence.names == [] and silence.notes == ("nothing was heard in it",)
    deaf = Discovery(None, discovery.parser)
    separator = Separator.from_pretrained(shared_checkpoint(), discovery=deaf)
    assert separator.separate(noise_T, SAMPLE_RATE_HZ, caption="a cello plays").names == ["cello"]
    with pytest.raises(ValueError, match=r"must listen .* \(it has none\): give queries"):
        separator.separate(noise_T, SAMPLE_RATE_HZ)
