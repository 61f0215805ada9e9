"""ACT as a captioner: its words, and what is said where a file is missing or of another model."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models.act import ACT_CONFIGS, Act
from opensep_jax.models.convert import convert
from opensep_jax.models.tables import ACT_TABLE
from opensep_jax.text import act
from opensep_jax.text.caption import Captioner, load_captioner
from tests.random_act import act_shapes, draw_tensor

CSV = 'file_name,caption\na.wav,"A dog barks, loudly."\nb.wav,Rain falls; a Dog howls\n'
WORDS = ["<sos>", "a", "dog", "barks", "loudly", "<eos>", "rain", "falls", "howls"]


def test_words_are_numbered_as_published():
    assert act.vocabulary(["A dog barks, loudly.", "Rain falls; a Dog howls"]) == WORDS


@pytest.fixture(scope="module")
def captioner() -> act.ActCaptioner:
    config = ACT_CONFIGS["tiny"]
    network = Act(config)
    tensors = {name: draw_tensor(name, shape) for name, shape in act_shapes(config).items()}
    level = jax.ShapeDtypeStruct((1, config.frames, config.mel_bands), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    abstract = jax.eval_shape(network.init, jax.random.key(0), level, ids)
    words = WORDS + [f"word{i}" for i in range(len(WORDS), config.vocab_size)]
    return act.ActCaptioner("act", network, convert(tensors, ACT_TABLE, abstract), words)


def test_the_network_is_compiled_once(captioner: act.ActCaptioner):
    assert captioner.window_s == 0.64
    listener = Captioner(captioner, batch=2)
    noise_CT = 0.1 * np.random.default_rng(0).standard_normal((2, 100_000))
    for rate_hz in (32_000, 44_100):
        (caption,) = listener.caption([noise_CT], rate_hz)
        assert caption and not {"<sos>", "<eos>"} & set(caption.lower().split())
    assert captioner.traces == 1


def test_captions_are_words_up_to_the_end(captioner: act.ActCaptioner, monkeypatch):
    monkeypatch.setattr(captioner, "_apply", lambda *_: np.array([[1, 2, 8, 5, 5], [5] * 5]))
    assert captioner.caption_windows(np.zeros((2, 20_480), np.float32)) == ["a dog howls", ""]


def test_missing_and_wrong_files_are_named(tmp_path: Path, monkeypatch):
    with pytest.raises(ValueError, match="act:none.pth: no such file"):
        load_captioner("act:none.pth")
    file = tmp_path / "act.pth"
    file.write_text("hello")
    with pytest.raises(ValueError, match="act.pth is no file of torch.save"):
        load_captioner(f"act:{file}")
    tensors = {"conv.weight": np.zeros((1, 1))}
    monkeypatch.setattr(act, "read_pth", lambda path, entry: {"model": tensors}[entry])
    with pytest.raises(ValueError, match="act.pth: no tensors word_emb.weight"):
        load_captioner(f"act:{file}")
    tensors["word_emb.weight"] = np.zeros((10, 512))
    tensors["transformer_decoder.layers.0.norm1.bias"] = np.zeros(512)
    with pytest.raises(ValueError, match="train.csv is missing: .* copy data/csv_files/train.csv"):
        load_captioner(f"act:{file}")
    (tmp_path / "train.csv").write_text("file_name,words\na.wav,a dog\n")
    with pytest.raises(ValueError, match="train.csv has no column 'caption'"):
        load_captioner(f"act:{file}")
    (tmp_path / "train.csv").write_text(CSV)
    with pytest.raises(ValueError, match="has 10 words, but the captions of .*train.csv give 9"):
        load_captioner(f"act:{file}")
    tensors["word_emb.weight"] = np.zeros((9, 512))
    with pytest.raises(ValueError, match="ACT: .* mismatches .*\n.*conv.weight has no rule"):
        load_captioner(f"act:{file}")
