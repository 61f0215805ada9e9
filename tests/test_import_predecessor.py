"""The predecessor's public file, as torch writes it: into a checkpoint that separates."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from opensep_jax import evaluate
from opensep_jax.api import Separator, load_separator
from opensep_jax.cli import run
from opensep_jax.import_predecessor import import_weights, main, parser
from opensep_jax.models.paper import PAPER_SIZES
from tests.random_paper import draw, draw_tensor
from tests.tiny_dataset import prepare_folder
from tests.tiny_text_encoder import write_tiny_bert

torch = pytest.importorskip("torch")
WIDTH = 64  # one attention head of RoBERTa
_CLAP = "net_clap.model.model."


def _roberta(vocab_size: int) -> dict[str, np.ndarray]:
    """A text encoder of one layer under its published names."""
    layer = "encoder.layer.0."
    shapes = {
        "embeddings.word_embeddings.weight": (vocab_size, WIDTH),
        "embeddings.position_embeddings.weight": (100, WIDTH),
        "embeddings.token_type_embeddings.weight": (1, WIDTH),
    }
    dense = {f"{layer}attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
    dense |= {f"{layer}attention.output.dense": (WIDTH, WIDTH)}
    dense |= {f"{layer}intermediate.dense": (96, WIDTH), f"{layer}output.dense": (WIDTH, 96)}
    norms = "embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"
    for name, shape in (dense | dict.fromkeys(norms, (WIDTH,))).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: draw_tensor(name, shape) for name, shape in shapes.items()}


def _tensors(vocab_size: int) -> dict[str, np.ndarray]:
    """What the file holds, the parts that nobody uses included."""
    text = {f"{_CLAP}text_branch.{k}": v for k, v in _roberta(vocab_size).items()}
    unused = {
        f"{_CLAP}text_branch.embeddings.position_ids": np.arange(100)[None],
        f"{_CLAP}text_transform.sequential.0.weight": np.ones((2, 2), np.float32),
        f"{_CLAP}audio_branch.patch_embed.proj.weight": np.ones((2, 1, 4, 4), np.float32),
        f"{_CLAP}audio_transform.sequential.0.bias": np.ones(2, np.float32),
        f"{_CLAP}audio_projection.0.weight": np.ones((2, 2), np.float32),
        f"{_CLAP}logit_scale_a": np.float32(1),
        "stft.conv_real.weight": np.ones((512, 1, 1022), np.float32),
        "istft.ola_window": np.ones(1022, np.float32),
    }
    own = draw(**PAPER_SIZES["paper_debug"], text_width=WIDTH)
    return {f"module.{name}": value for name, value in (own | text | unused).items()}


def _save(file: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """As the predecessor's training does, with the optimiser and its history."""
    weights = {name: torch.as_tensor(np.array(value)) for name, value in tensors.items()}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 15)
    checkpoint = {
        "epoch": 7,
        "state_dict": weights,
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "best_sdr": torch.tensor(1.5),
        "history": {"test": {"epoch": [7], "sdr": [torch.tensor(1.5)]}},
    }
    torch.save(checkpoint, file)
    return file


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tensors(tokenizer: Path) -> dict[str, np.ndarray]:
    return _tensors(len((tokenizer / "vocab.txt").read_text().splitlines()))


@pytest.fixture(scope="module")
def checkpoint(
    tokenizer: Path, tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    file = _save(folder / "model_weights.pth.tar", tensors)
    import_weights(file, folder / "paper", str(tokenizer), "paper_debug")
    import_weights(file, folder / "paper", str(tokenizer), "paper_debug")  # replaces the first
    assert sorted(p.name for p in folder.iterdir()) == ["model_weights.pth.tar", "paper"]
    return (folder / "paper").rename(folder / "moved")  # it holds all that it needs


def test_an_imported_checkpoint_separates(checkpoint: Path):
    separator = Separator.from_pretrained(checkpoint)
    assert separator.engine.net.stft.frames(separator.engine.windows.window_samples) == 512
    wave = np.float32(0.1 * np.random.default_rng(0).standard_normal(4000))
    separation = separator.separate(wave, 16000, ["a dog barks", "the cello"])
    np.testing.assert_allclose(separation.stems.sum(0) + separation.residual, wave[None], atol=1e-6)
    assert all(0.01 < source.energy_share < 0.99 for source in separation.sources)
    assert not np.allclose(*separation.stems, atol=1e-3)


def test_an_imported_checkpoint_is_evaluated(checkpoint: Path, tiny_sounds: Path, tmp_path: Path):
    """On records that its own text encoder prepared, by the predecessor's protocol."""
    data, out = tmp_path / "data", tmp_path / "out"
    assert prepare_folder(tiny_sounds, data, checkpoint / "text_encoder") == 0
    flags = {
        "checkpoint": checkpoint, "data": data, "out": out, "protocol": "bimodal_vggsound",
        "split": "val", "mixtures": 1, "seconds": 0.25, "measures": "snr,bss_sources_512",
    }  # fmt: skip
    argv = [f"--{key}={value}" for key, value in flags.items()]
    assert run(evaluate.main, evaluate.parser(), (ValueError,), argv) == 0
    (line,) = (json.loads(text) for text in (out / "items.jsonl").read_text().splitlines())
    scores = {row["query"]: row["snr"] for row in line["scores"] if row["system"] != "irm"}
    assert np.isfinite(scores["paraphrase"]).all() and scores["paraphrase"] != scores[""]


def test_weights_stay_in_float32(checkpoint: Path, tensors: dict[str, np.ndarray]):
    config, _, params = load_separator(checkpoint)
    scale = tensors["module.net_synthesizer.scale"]
    np.testing.assert_array_equal(params["decoder"]["head"]["scale"], scale)
    assert config["origin"]["file"] == "model_weights.pth.tar"


def test_prompts_are_padded_as_in_training(checkpoint: Path, tensors: dict[str, np.ndarray]):
    """Always 77 states, those of padding included, equal to torch's."""
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig.from_pretrained(checkpoint / "text_encoder")
    theirs = transformers.RobertaModel(config, add_pooling_layer=False).eval()
    prefix = f"module.{_CLAP}text_branch."
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    weights = {
        k: torch.as_tensor(v) for k, v in own.items() if k[-3:] != "ids" and "pooler" not in k
    }
    theirs.load_state_dict(weights, strict=False)
    encoder = Separator.from_pretrained(checkpoint).engine.encoder
    assert encoder.id.endswith("-77") and encoder.max_tokens == 77
    prompts = ["a dog barks", "the low cello, loud; " * 30]
    for prompt, states in zip(prompts, encoder.encode(prompts), strict=True):
        ids = encoder._tokenize([prompt])[0]
        assert states.shape == (77, WIDTH) and len(ids) <= 77
        padded = torch.tensor([ids + [1] * (77 - len(ids))])
        with torch.no_grad():
            expected = theirs(padded, padded != 1).last_hidden_state[0].numpy()
        np.testing.assert_allclose(np.float32(states), expected, rtol=0, atol=0.02)


def test_what_is_missing_or_unknown_is_named(
    tmp_path: Path,
    tokenizer: Path,
    tensors: dict[str, np.ndarray],
    capsys: pytest.CaptureFixture,
):
    wrong = dict(tensors)
    wrong["module.net_sound.bn1.weight"] = wrong.pop("module.net_sound.bn0.weight")
    file, out = _save(tmp_path / "wrong.pth.tar", wrong), tmp_path / "out"
    with pytest.raises(ValueError) as error:
        import_weights(file, out, str(tokenizer), "paper_debug")
    assert "unmapped: module.net_sound.bn1.weight has no rule" in str(error.value)
    assert "unfilled: input_norm/scale" in str(error.value)
    textless = {k: v for k, v in tensors.items() if "embeddings" not in k}
    _save(file, textless)
    argv = [str(file), "--out", str(out), "--tokenizer", str(tokenizer)]
    assert run(main, parser(), (ValueError,), argv) == 2
    assert (
        "holds no text encoder: no name ends in embeddings.word_embeddings"
        in capsys.readouterr().err
    )
    assert not out.exists()
