"""The captioner as a whole, from files to texts, on weights that are drawn by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.models.clapcap import CLAPCAP_CONFIGS
from opensep_jax.text import clapcap
from tests.random_clapcap import STOP_IDS, clapcap_shapes, draw_tensor, golden_waves

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = CLAPCAP_CONFIGS["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`weights.safetensors` and the vocabulary of a tiny captioner; read only."""
    folder = tmp_path_factory.mktemp("clapcap")
    shapes = clapcap_shapes(CONFIG)
    tensors = {name: draw_tensor(name, shape) for name, shape in shapes.items()}
    tensors["clap.base.htsat.logmel_extractor.melW"] = clapcap.MEL.filters_FM
    save_file(tensors, folder / "weights.safetensors")
    _write_vocabulary(folder)
    return folder


def _write_vocabulary(folder: Path, words: int = CONFIG.decoder.vocab_size) -> None:
    """Word 174, which the recorded captions begin with, is "a Dog", others are " W<id>"."""
    vocab = {f"\u0120W{i}": i for i in range(words)}
    del vocab["\u0120W174"], vocab[f"\u0120W{STOP_IDS['tiny']}"]
    vocab |= {"a\u0120Dog": 174, "\u0120": STOP_IDS["tiny"]}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")


@pytest.fixture(scope="module")
def captioner(folder: Path) -> clapcap.Clapcap:
    steps = np.load(GOLDEN / "clapcap_tiny.npz")["beam"].shape[-1] - 1
    return clapcap.load(str(folder / "weights.safetensors"), size="tiny", max_tokens=steps)


def test_captions_equal_the_published_code(captioner: clapcap.Clapcap):
    """The recorded words of the best beams, written with our vocabulary."""
    waves_BT = golden_waves()
    captions = captioner.caption_windows(waves_BT)
    for caption, beams in zip(captions, np.load(GOLDEN / "clapcap_tiny.npz")["beam"], strict=True):
        names = {174: "a Dog", STOP_IDS["tiny"]: " "}
        text = "".join(names.get(i, f" W{i}") for i in beams[0] if i >= 0)
        assert caption == text.capitalize().strip()
    assert captions[0].startswith("A dog w129 ") and captions[0] != captions[1]
    # Order changes nothing, and the network is compiled once per number of windows.
    assert captioner.caption_windows(waves_BT[::-1]) == captions[::-1]
    assert captioner.traces == 1


def test_describes_itself_for_the_interface(captioner: clapcap.Clapcap, folder: Path):
    assert (captioner.sample_rate_hz, captioner.window_s) == (44_100, 7.0)
    assert captioner.padding == "repeat"
    again = clapcap.load(str(folder / "weights.safetensors"), str(folder), size="tiny", beams=1)
    assert captioner.id == again.id and captioner.id.startswith("clapcap-")


def test_reads_the_published_file_format(folder: Path, tmp_path: Path):
    torch = pytest.importorskip("torch")
    tensors = load_file(folder / "weights.safetensors")
    named = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    torch.save({"model": named}, tmp_path / clapcap.HUB_WEIGHTS[1])
    ours = clapcap.load(str(tmp_path), str(folder), size="tiny")
    theirs = clapcap.load(str(folder / "weights.safetensors"), size="tiny")
    for one, other in zip(_leaves(ours), _leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def _leaves(captioner: clapcap.Clapcap) -> list:
    import jax

    return jax.tree.leaves(captioner._constants)


def test_windows_of_another_length_are_refused(captioner: clapcap.Clapcap):
    with pytest.raises(ValueError, match=r"need windows \[B, 308700\], got shape \(2, 5\)"):
        captioner.caption_windows(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpt.lm_head.weight": np.zeros((301, 64), np.float32)}, "differ, and the output layer"),
        ({"clap.base.htsat.logmel_extractor.melW": None}, "melW is missing"),
        (
            {"clap.base.htsat.logmel_extractor.melW": np.ones((201, 80), np.float32)},
            r"\(201, 80\) where \(513, 64\) is wanted",
        ),
        ({"clap.projection.linear1.weight": None}, "unfilled: params/projection/first/kernel"),
    ],
)
def test_other_weights_are_refused(folder: Path, tmp_path: Path, change: dict, message: str):
    tensors = load_file(folder / "weights.safetensors") | change
    file = tmp_path / "other.safetensors"
    save_file({name: x for name, x in tensors.items() if x is not None}, file)
    with pytest.raises(
        ValueError, match=rf"other\.safetensors is not the captioner.*(\n.*)*{message}"
    ):
        clapcap.load(str(file), str(folder), size="tiny")


def test_a_checkpoint_with_other_filters_is_reported(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    name = "clap.base.htsat.logmel_extractor.melW"
    tensors = load_file(folder / "weights.safetensors")
    save_file(tensors | {name: 2 * tensors[name]}, tmp_path / "x.safetensors")
    clapcap.load(str(tmp_path / "x.safetensors"), str(folder), size="tiny")
    assert f"{name} differs" in caplog.text


def test_missing_files_name_the_remedy(folder: Path, tmp_path: Path, monkeypatch):
    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    file = tmp_path / "weights.safetensors"
    with pytest.raises(WeightsError, match="clapcap_weights_2023.pth .*no network.*pass the path"):
        clapcap.load()
    with pytest.raises(
        ValueError, match=r"weights\.safetensors does not exist; .*microsoft/msclap"
    ):
        clapcap.load(str(file))
    with pytest.raises(ValueError, match="clapcap_weights_2023.pth does not exist"):
        clapcap.load(str(tmp_path))
    file.symlink_to(folder / file.name)
    remedy = "put tokenizer.json, or vocab.json and merges.txt, of gpt2"
    with pytest.raises(WeightsError, match=f"Offline, {remedy} beside the weights in {tmp_path}"):
        clapcap.load(str(file), size="tiny")
    with pytest.raises(ValueError, match=f"{tmp_path} holds no vocabulary: {remedy} there"):
        clapcap.load(str(file), str(tmp_path), size="tiny")


def test_settings_and_tokenizers_that_do_not_fit_are_refused(folder: Path, tmp_path: Path):
    file = str(folder / "weights.safetensors")
    with pytest.raises(ValueError, match="temperature=0 > 0"):
        clapcap.load(file, size="tiny", temperature=0)
    _write_vocabulary(tmp_path, 300)
    with pytest.raises(ValueError, match="tokenizer has 300 tokens and the captioner 301"):
        clapcap.load(file, str(tmp_path), size="tiny")
