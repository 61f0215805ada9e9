"""Protocol files: all that ship can be followed, and say what they are."""

import json
from importlib import resources
from pathlib import Path

import pytest

from opensep_jax.evaluation.protocol import load_protocol, protocol_names


@pytest.mark.parametrize("name", protocol_names())
def test_a_protocol_says_what_it_scores_and_where_it_is_from(name: str):
    protocol = load_protocol(name)
    assert protocol.about.endswith(".") and len(protocol.source) > 10 and protocol.published_list
    assert protocol.split in ("val", "test")
    measure = protocol.headline.removesuffix("i").removesuffix("_sdr")
    assert protocol.headline.removesuffix("i") in protocol.measures or measure in protocol.measures
    if protocol.scored == "first":  # one query: no other prompt may move its mask
        assert protocol.masks == ("none",)


def test_every_published_benchmark_has_its_file():
    assert set(protocol_names()) == {
        "opensep_jax", "dcase2024_task9", "bimodal_music", "bimodal_vggsound", "bimodal_audiocaps",
        *(f"audiosep_{s}" for s in ("audiocaps", "audioset", "clotho", "esc50", "music",
                                    "vggsound")),
    }  # fmt: skip


def test_changes_are_told():
    protocol = load_protocol("dcase2024_task9")
    changed = protocol.changed({"seconds": 5.0, "num_sources": (2, 3), "mixtures": None})
    assert (changed.seconds, changed.num_sources, changed.mixtures) == (5.0, (2, 3), 3000)
    assert changed.differs[-2:] == ("seconds 5.0 instead of 10.0", "num_sources 2,3 instead of 2")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"crops": "middle"},
            "crops middle not known; known: sounding, centre, centre_padded, start",
        ),
        ({"measures": []}, "measures empty not known"),
        ({"sdr": "snr"}, "keys sdr missing or unknown"),
        ({"seconds": "ten"}, "not supported between"),
        ({"range_db": [3.0, 1.0]}, "need the lowest and the highest level"),
    ],
)
def test_files_that_make_no_sense_are_named(tmp_path: Path, change: dict, message: str):
    text = resources.files("opensep_jax").joinpath("assets/protocols/opensep_jax.json").read_text()
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(json.loads(text) | change))
    with pytest.raises(ValueError, match=f"mine.json: .*{message}"):
        load_protocol(str(file))
