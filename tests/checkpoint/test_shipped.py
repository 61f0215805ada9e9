"""Exported separators: whole, strict, and found by name or path."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from opensep_jax.checkpoint import shipped
from tests.tiny_checkpoint import random_params, shapes_of, shared_checkpoint


@pytest.fixture()
def config() -> dict:
    config = json.loads((shared_checkpoint() / "config.json").read_text())
    config.pop("weights_sha256")
    return config


@pytest.fixture()
def folder(tmp_path: Path, config: dict) -> Path:
    shipped.export(tmp_path / "a" / "model", random_params(config), config)
    return tmp_path / "a" / "model"


def _resave(folder: Path, tensors: dict) -> None:
    """Other tensors, without the hash that would tell."""
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config.pop("weights_sha256", None)
    (folder / "config.json").write_text(json.dumps(config))


def test_round_trip_is_float16_rounding(folder: Path, config: dict):
    loaded, params = shipped.load(folder, shapes_of)
    assert {k: loaded[k] for k in config} == config
    want = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), random_params(config))
    jax.tree.map(np.testing.assert_array_equal, params, want)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert shipped.params_id(params) == shipped.params_id(want)
    assert shipped.params_id(params) != shipped.params_id(random_params(config, seed=1))
    stored = load_file(folder / "model.safetensors")
    assert {x.dtype for x in stored.values()} == {np.dtype(np.float16)}
    assert "bottom0/cross_q/kernel" in stored
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]  # no scratch is left


def test_export_replaces_exports_only(folder: Path, config: dict):
    (folder / "README.md").write_text("card")
    shipped.export(folder, random_params(config, seed=1), config)
    want = shipped.params_id(
        jax.tree.map(lambda x: x.astype(np.float16), random_params(config, seed=1))
    )
    assert shipped.params_id(shipped.load(folder, shapes_of)[1]) == want
    assert (folder / "README.md").read_text() == "card"
    with pytest.raises(ValueError, match="is no exported checkpoint; it is not replaced"):
        shipped.export(folder.parent, random_params(config), config)


def test_export_refuses_what_cannot_be_used(tmp_path: Path, config: dict):
    params = random_params(config)
    params["stem"]["bias"][0] = 1e6
    with pytest.raises(ValueError, match="not finite in float16: stem/bias"):
        shipped.export(tmp_path / "x", params, config)
    del config["window_s"], config["text_encoder"]["id"]
    with pytest.raises(ValueError, match="the config lacks text_encoder.id, window_s"):
        shipped.export(tmp_path / "x", random_params(config), config)
    assert not (tmp_path / "x").exists()


def test_every_wrong_tensor_is_named_at_once(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["extra"] = tensors.pop("stem/bias")
    tensors["head/bias"] = tensors["head/bias"][:-1]
    _resave(folder, tensors)
    with pytest.raises(ValueError) as caught:
        shipped.load(folder, shapes_of)
    assert "3 mismatches" in str(caught.value)
    for part in ("unmapped: extra", "unfilled: stem/bias", "shape: head/bias", str(folder)):
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_damaged_weights_are_named(folder: Path, damage: str):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes({"cut": data[:-100], "flip": data, "empty": b""}[damage])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        shipped.load(folder, shapes_of)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "config.json cannot be read"),
        ("[]", "no JSON object"),
        ('{"schema": 2, "task": "separator"}', "schema 2 and task 'separator'"),
        ('{"schema": 1, "task": "captioner"}', "task 'captioner'"),
        ('{"schema": 1, "task": "separator", "model": 3}', "lacks model, stft, sample_rate_hz"),
    ],
)
def test_unusable_configs_are_named(folder: Path, text: str, message: str):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        shipped.load(folder, shapes_of)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("sample_rate_hz", "abc", "sample_rate_hz='abc' is not a whole number above 0"),
        ("sample_rate_hz", True, "sample_rate_hz=True is not a whole number"),
        ("window_s", -1, "window_s=-1 is not a number above 0"),
        ("text_encoder.width", "x", "text_encoder.width='x' is not a whole"),
        ("text_encoder.max_tokens", -3, "text_encoder.max_tokens=-3 is not a whole"),
        ("model.size", 3, "model.size=3 is not a text"),
        ("stft.bogus", 1, "stft.bogus is not known"),
    ],
)
def test_values_of_another_kind_are_named(folder: Path, key: str, value: object, message: str):
    config = json.loads((folder / "config.json").read_text())
    *groups, last = key.split(".")
    (config[groups[0]] if groups else config)[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        shipped.load(folder, shapes_of)


@pytest.mark.parametrize("name", ["", "demos", "no/such/folder"])
def test_unknown_names_list_the_known_ones(name: str):
    with pytest.raises(ValueError, match=f"unknown checkpoint '{name}'.*known names: demo"):
        shipped.load(name, shapes_of)


def test_a_folder_without_a_checkpoint_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(ValueError, match=r"neither model\.safetensors .* nor checkpoints/"):
        shipped.load(tmp_path, shapes_of)


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/30"])
def test_training_folders_go_to_their_reader(
    tmp_path: Path, config: dict, monkeypatch: pytest.MonkeyPatch, below: str
):
    from opensep_jax.checkpoint import state

    (tmp_path / "checkpoints" / "30").mkdir(parents=True)
    asked = []

    def load_params(path: Path) -> tuple[dict, dict]:
        asked.append(path)
        trained = {k: v for k, v in config.items() if k != "steps"}
        return trained | {"step": 30}, random_params(config)

    monkeypatch.setattr(state, "load_params", load_params)
    loaded, params = shipped.load(tmp_path / below, shapes_of)
    assert asked == [tmp_path / below]
    assert loaded["steps"] == 30
    jax.tree.map(np.testing.assert_array_equal, params, random_params(config))
