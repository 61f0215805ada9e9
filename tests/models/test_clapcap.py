"""The captioner against recorded runs of the published code on weights that are drawn by name."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax.models.clapcap import CLAPCAP_CONFIGS, ClapcapNetwork, search_captions
from opensep_jax.models.convert import WeightTableError, convert
from opensep_jax.models.htsat import HTSAT, HTSATConfig, shift_mask, stretch
from opensep_jax.models.tables import CLAPCAP_TABLE
from opensep_jax.signal.mel import decibels, mel_power
from opensep_jax.text.clapcap import MEL
from tests.random_clapcap import STOP_IDS, clapcap_shapes, draw_tensor, golden_waves

GOLDEN = Path(__file__).parents[1] / "golden"


class _Drawn(Mapping[str, np.ndarray]):
    """The published tensors, each drawn when it is asked for."""

    def __init__(self, size: str) -> None:
        self._shapes = clapcap_shapes(CLAPCAP_CONFIGS[size])

    def __getitem__(self, name: str) -> np.ndarray:
        return draw_tensor(name, self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _abstract(size: str) -> dict:
    level = jax.ShapeDtypeStruct((1, 965, 64), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    network = ClapcapNetwork(CLAPCAP_CONFIGS[size])
    return jax.eval_shape(network.init, jax.random.key(0), level, ids)


def _check_golden(size: str, recorded: str) -> None:
    golden = np.load(GOLDEN / recorded)
    network = ClapcapNetwork(CLAPCAP_CONFIGS[size])
    variables = convert(_Drawn(size), CLAPCAP_TABLE, _abstract(size))
    steps = golden["beam"].shape[-1] - 1

    @jax.jit
    def run(variables: dict, waves_BT: jax.Array) -> tuple:
        with jax.default_matmul_precision("highest"):
            level_BNM = decibels(mel_power(waves_BT, MEL))
            prefix_BPC, states = network.apply(variables, level_BNM, method="prefix")
            length = prefix_BPC.shape[1]
            logits_BV, _ = network.apply(variables, prefix_BPC, length, method="prefill")
            settings = {"beams": 5, "max_tokens": steps, "stop_id": STOP_IDS[size]}
            found = search_captions(network, variables, prefix_BPC, **settings)
        return level_BNM, prefix_BPC, states, logits_BV, found

    level_BNM, prefix_BPC, states, logits_BV, found = jax.device_get(run(variables, golden_waves()))

    def equal(ours: np.ndarray, name: str, tolerance: float) -> None:
        np.testing.assert_allclose(ours, golden[name], rtol=0, atol=tolerance, err_msg=name)

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1, x.shape[-1])

    equal(level_BNM[:, ::97, ::9], "logmel", 1e-3)
    equal(flat(states["patches"])[:, ::401, ::5], "patch_embed", 1e-4)
    for i in range(4):
        x = flat(states[f"stage_{i}"])
        equal(x[:, :: x.shape[1] // 8, :: x.shape[2] // 16], f"layer{i}", 1e-4)
    equal(states["latent"], "latent", 1e-4)
    equal(states["embedding"], "proj", 1e-4)
    equal(prefix_BPC[:, ::5, :: prefix_BPC.shape[-1] // 16], "prefix", 1e-4)
    np.testing.assert_array_equal(np.argsort(-logits_BV, axis=1)[:, :5], golden["top5_id"])
    equal(-np.sort(-logits_BV, axis=1)[:, :5], "top5_val", 1e-3)
    said = np.arange(steps) < found.lengths_BK[:, :, None]
    np.testing.assert_array_equal(
        np.where(said, found.tokens_BKL, -1), golden["beam"][:, :, :steps]
    )


def test_tiny_captioner_equals_the_published_code():
    _check_golden("tiny", "clapcap_tiny.npz")


@pytest.mark.slow
def test_captioner_of_full_size_equals_the_published_code():
    """About a minute and 4 GB: 227 million weights are drawn."""
    _check_golden("clapcap", "clapcap_full.npz")


def test_every_published_name_has_its_place():
    """452 names of the published class; those that the table skips fill nothing."""
    shapes = clapcap_shapes(CLAPCAP_CONFIGS["clapcap"])
    assert len(shapes) == 452
    without = ("spectrogram", "melW", "tscam", "htsat.head", "lm_head", "index", "mask", "tracked")
    used = [shape for name, shape in shapes.items() if not any(w in name for w in without)]
    abstract = _abstract("clapcap")
    assert sum(int(np.prod(shape)) for shape in used) == sum(
        leaf.size for leaf in jax.tree.leaves(abstract)
    )
    # 31,325,143 - 1,083,456 - 2,428,943 - 278,256 of the encoder, its 128 running statistics,
    # 1,837,056 of the projection, 69,316,608 of the mapper and 124,439,808 of GPT-2.
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == 223_128_088
    nothing = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    nothing = {name: x for name, x in nothing.items() if x.size < 100_000}
    with pytest.raises(WeightTableError) as caught:
        convert(nothing, CLAPCAP_TABLE, abstract)
    # Only the large ones, which are left out here, are missed.
    lines = str(caught.value).splitlines()[1:]
    missed = [s for n, s in shapes.items() if not any(w in n for w in without) and n not in nothing]
    assert len(lines) == len(missed) and all("unfilled" in line for line in lines)


def test_extra_and_missing_tensors_are_named():
    tensors = dict(_Drawn("tiny"))
    tensors["gpt.transformer.h.0.attn.bias"] = np.ones((1, 1, 2, 2))  # of older transformers
    tensors["clap.base.htsat.layers.4.norm.weight"] = np.ones(3)
    del tensors["clap_project.prefix_const"]
    with pytest.raises(WeightTableError) as caught:
        convert(tensors, CLAPCAP_TABLE, _abstract("tiny"))
    assert str(caught.value).splitlines()[1:] == [
        "  unmapped: clap.base.htsat.layers.4.norm.weight has no rule",
        "  unfilled: params/mapper/learned",
    ]


def test_stretching_equals_torch():
    torch = pytest.importorskip("torch")
    level_BNM = np.random.default_rng(0).standard_normal((1, 965, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(level_BNM)[:, None], (1024, 3), mode="bicubic", align_corners=True
    )
    ours = stretch(level_BNM, 1024)
    np.testing.assert_allclose(ours, theirs[:, 0].numpy(), rtol=0, atol=2e-5)


def test_stretching_to_the_same_length_changes_nothing():
    level_BNM = np.random.default_rng(0).standard_normal((1, 16, 2)).astype(np.float32)
    np.testing.assert_allclose(stretch(level_BNM, 16), level_BNM, rtol=0, atol=1e-6)


def test_shifted_windows_keep_wrapped_positions_apart():
    mask_WLL = np.asarray(shift_mask(16, 8, 4))
    assert not mask_WLL[0].any()  # nothing wrapped
    # In the last window both axes wrap: each position sees its own quarter.
    assert ((mask_WLL[3] == 0).sum(axis=1) == 16).all()
    # The wrapped rows are the lower half of the windows of the last row.
    assert (mask_WLL[2][0] == np.repeat([0, -100], 32)).all()


def test_encoder_equals_torch_clap():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = CLAPCAP_CONFIGS["tiny"].encoder
    hf_config = transformers.ClapAudioConfig(
        depths=list(config.depths),
        num_attention_heads=list(config.heads),
        patch_embeds_hidden_size=config.width,
        hidden_size=config.latent_width,
    )
    model = transformers.ClapAudioModel(hf_config).eval()
    drawn = _Drawn("tiny")
    state = dict(_to_hf(drawn))
    missing = set(model.state_dict()) - set(state)
    assert all(
        name.endswith(("relative_position_index", "num_batches_tracked")) for name in missing
    )
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    variables = convert(drawn, CLAPCAP_TABLE, _abstract("tiny"))
    variables = {kind: tree["encoder"] for kind, tree in variables.items()}
    level_BNM = np.random.default_rng(0).normal(-30, 10, (2, 965, 64)).astype(np.float32)
    with torch.no_grad():
        theirs_BC = model(input_features=torch.tensor(level_BNM)[:, None]).pooler_output.numpy()
    ours_BC, _ = jax.jit(HTSAT(config).apply)(variables, level_BNM)
    np.testing.assert_allclose(ours_BC, theirs_BC, rtol=0, atol=1e-4)


def _to_hf(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, object]]:
    """The encoder's tensors under the names of transformers' `ClapAudioModel`."""
    import torch

    renamed = (
        ("bn0.", "batch_norm."),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("attn.proj", "attention.output.dense"),
        ("attn.relative", "attention.self.relative"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    )
    skipped = ("spectrogram", "logmel", "tscam", "head", "index", "mask", "tracked")
    prefix = "clap.base.htsat."
    for name in tensors:
        if not name.startswith(prefix) or any(word in name for word in skipped):
            continue
        tensor = torch.tensor(tensors[name])
        name = "audio_encoder." + name.removeprefix(prefix)
        for theirs, hf in renamed:
            name = name.replace(theirs, hf)
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                yield name.replace("attn.qkv", f"attention.self.{part}"), rows
        else:
            yield name, tensor


def test_encoder_refuses_what_does_not_fit():
    config = HTSATConfig(16, (2,), (1,))
    with pytest.raises(ValueError, match="1025 frames of 64 bands; .* 1024 frames of 64 bands"):
        jax.eval_shape(HTSAT(config).init, jax.random.key(0), jnp.zeros((1, 1025, 64)))
