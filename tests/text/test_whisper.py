"""Whisper as a captioner: its features, its prompt, and real weights."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from opensep_jax.checkpoint import weights
from opensep_jax.models.convert import convert
from opensep_jax.models.safetensors import read_safetensors
from opensep_jax.models.tables import WHISPER_TABLE
from opensep_jax.models.whisper import WHISPER_CONFIGS, Whisper, WhisperConfig
from opensep_jax.signal.mel import Mel
from opensep_jax.text.caption import Captioner, load_captioner
from opensep_jax.text.whisper import STYLE, WhisperCaptioner, features, load
from tests.tiny_whisper import CONFIG, write_tiny_whisper

GOLDEN = Path(__file__).parent.parent / "golden" / "whisper_base.npz"
MEL = Mel(16_000, 400, 160, 80, 0, 8000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def captioner(folder: Path) -> WhisperCaptioner:
    return load(str(folder))


def _waves() -> np.ndarray:
    """A window of noise and one of a tone, [2, 6400]."""
    noise_T = 0.3 * np.random.default_rng(1).standard_normal(6400)
    return np.stack([noise_T, 0.5 * np.sin(0.3 * np.arange(6400))]).astype(np.float32)


def _golden_wave() -> np.ndarray:
    """Ten seconds of tones in noise, followed by silence: the recorded arrays' window [480000]."""
    time_s = np.arange(160_000) / 16_000
    beeps = 0.2 * np.sin(2 * np.pi * 3000 * time_s) * (time_s % 1 < 0.5)
    noise = 0.01 * np.random.default_rng(0).standard_normal(160_000)
    wave_T = 0.3 * np.sin(2 * np.pi * 440 * time_s) + beeps + noise
    return np.pad(wave_T, (0, 320_000)).astype(np.float32)


def test_features_equal_the_published_extractor():
    feature_NF = jax.jit(features, static_argnums=1)(_golden_wave()[None], MEL)[0]
    assert feature_NF.shape == (3000, 80)
    np.testing.assert_allclose(feature_NF.T[::10, ::97], np.load(GOLDEN)["feat"], atol=1e-4)


def test_captions_come_from_the_network_with_its_style(folder: Path, captioner):
    assert captioner.id.startswith("whisper-1+1x16-") and captioner.window_s == 0.4
    captions = captioner.caption_windows(_waves())
    assert len(set(captions)) == 2 and all(captions)
    assert load(str(folder), style="").caption_windows(_waves()) != captions
    assert not any(STYLE.strip() in caption for caption in captions)


def test_annotations_lose_their_brackets_and_silence_its_name(folder: Path, monkeypatch):
    plain = load(str(folder), style="")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    end_id = tokenizer.token_to_id("<|endoftext|>")
    for said, want in ((" (bell ringing) [Music]", "bell ringing Music"), ("[BLANK_AUDIO]", "")):
        ids_BL = np.array([[*tokenizer.encode(said).ids, end_id, end_id]])
        monkeypatch.setattr(plain, "_apply", lambda *_, ids_BL=ids_BL: ids_BL)
        assert plain.caption_windows(_waves()[:1]) == [want]


def test_suppressed_tokens_do_not_appear(folder: Path, tmp_path: Path, captioner):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    banned = tokenizer.encode(captioner.caption_windows(_waves())[0]).ids
    generation = {"suppress_tokens": banned, "begin_suppress_tokens": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    again = tokenizer.encode(load(str(tmp_path)).caption_windows(_waves())[0]).ids
    assert banned and not set(banned) & set(again)


def test_nothing_is_compiled_per_file(captioner):
    listener = Captioner(captioner, batch=2)
    rng = np.random.default_rng(2)
    for samples, rate_hz in [(1, 16_000), (800, 8000), (6400, 16_000), (100_000, 44_100)]:
        waves = [0.1 * rng.standard_normal((c, samples)) for c in (1, 2, 3)]
        captions = listener.caption(waves, rate_hz)
        assert len(captions) == 3 and all(isinstance(caption, str) for caption in captions)
    assert captioner.traces == 1


def test_a_torch_file_serves_as_well(folder: Path, tmp_path: Path, captioner):
    torch = pytest.importorskip("torch")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(folder / "model.safetensors")
    torch.save({k: torch.tensor(v) for k, v in tensors.items()}, tmp_path / "pytorch_model.bin")
    want = captioner.caption_windows(_waves())
    assert load(str(tmp_path)).caption_windows(_waves()) == want


def test_missing_or_wrong_files_are_named(folder: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ValueError, match=f"{tmp_path} has no tokenizer: copy tokenizer.json"):
        load(str(tmp_path))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].pop(2)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"the tokenizer has no <\|en\|>"):
        load(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="model.safetensors is not a safetensors file or is cut"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"decoder_ffn_dim": 7}, "decoder_ffn_dim is 7; only 32"),
        ({"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "16 is not divisible by"),
        ({"num_mel_bins": None}, "lacks .*num_mel_bins"),
    ],
)
def test_unsupported_configs_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        WhisperConfig.from_hf(CONFIG | change)


@pytest.mark.real_weights
def test_equals_whisper_base():
    folder = weights.resolve("whisper-base")
    config = WhisperConfig.from_hf(json.loads((folder / "config.json").read_text()))
    assert config == WHISPER_CONFIGS["base"]
    network, golden = Whisper(config), np.load(GOLDEN)
    shapes = jax.ShapeDtypeStruct((1, 3000, 80), np.float32), jax.ShapeDtypeStruct((1, 1), int)
    abstract = jax.eval_shape(network.init, jax.random.key(0), *shapes)["params"]
    variables = {"params": convert(read_safetensors(folder), WHISPER_TABLE, abstract)}

    @jax.jit
    def hear(variables, wave_BT):
        states_BNC = network.apply(variables, features(wave_BT, MEL), method="encode")
        return states_BNC, network.apply(variables, states_BNC, method="start")

    states_BNC, cross = hear(variables, _golden_wave()[None])
    np.testing.assert_allclose(states_BNC[0, ::150, ::32], golden["enc"], atol=1e-4)
    step = jax.jit(functools.partial(network.apply, method="step"))
    for kind, length in (("plain", 4), ("clotho", 11)):
        want_L = golden[f"{kind}_greedy"]
        cache, ids_L = network.empty_cache(1, 16), want_L[:length].astype(np.int32)
        logits_BV, cache = step(variables, ids_L[None], 0, cache, cross)
        np.testing.assert_allclose(logits_BV[0, ::2000], golden[f"{kind}_logits"], atol=1e-3)
        np.testing.assert_array_equal(np.argsort(-logits_BV[0])[:5], golden[f"{kind}_top5_id"])
        while len(ids_L) < len(want_L):
            ids_L = np.append(ids_L, np.int32(logits_BV.argmax()))
            logits_BV, cache = step(variables, ids_L[None, -1:], len(ids_L) - 1, cache, cross)
        np.testing.assert_array_equal(ids_L, want_L)


@pytest.mark.real_weights
def test_whisper_base_hears_a_bell():
    listener = load_captioner("whisper:whisper-base")
    assert listener.caption([_golden_wave()[:160_000]], 16_000) == ["bell ringing"]
    file = weights.resolve("whisper-base") / "tokenizer.json"
    styled = tokenizers.Tokenizer.from_file(str(file)).encode(STYLE, add_special_tokens=False)
    assert styled.ids == [3474, 900, 78, 12331, 31974, 25, 220]
