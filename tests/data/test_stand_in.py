"""Records without sound are read like any others."""

from pathlib import Path

from opensep_jax.data.lists import list_mixtures, text_ids
from opensep_jax.data.records import PreparedDataset
from opensep_jax.data.stand_in import write_stand_in


def test_a_stand_in_opens_like_prepared_data(tmp_path: Path):
    write_stand_in(
        tmp_path, splits=("train", "val"), wordings=("caption", "label"), names=3,
        sample_rate_hz=8000, text_tokens=7, text_width=12,
    )  # fmt: skip
    for split in ("train", "val"):
        dataset = PreparedDataset(tmp_path, split)
        assert len(dataset) == 3 and dataset.sample_rate_hz == 8000
        assert dataset.text.longest == 7 and dataset.text.tokens_MC.shape == (7, 12)
        assert dataset.audio(2).shape == (8000,)
        (mixture,) = list_mixtures(dataset, number=1, sources=3, seed=0)
        assert text_ids(dataset, mixture, "label") == [0, 0, 0]
