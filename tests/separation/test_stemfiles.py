"""Stems as files: what is read back sums to the input, whatever is chosen and however it clips."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from opensep_jax.separation.stemfiles import (
    Encoding,
    Selection,
    Spool,
    StemFiles,
    gain_to_fit,
    residual_of,
)

RNG = np.random.default_rng(0)
STEMS = (0.2 * RNG.standard_normal((3, 2, 9000))).astype(np.float32)
INPUT = (STEMS.sum(0) + 0.1 * RNG.standard_normal((2, 9000))).astype(np.float32)


def _write(folder: Path, encoding: Encoding, gain: float = 1.0, **selection: object) -> StemFiles:
    with StemFiles(
        folder, ["a", "b b", "c"], encoding, 16_000, 2, gain=gain, selection=Selection(**selection)
    ) as files:
        for start in range(0, 9000, 1700):
            cut = slice(start, start + 1700)
            files.write(INPUT[:, cut], STEMS[:, :, cut])
    return files


def _read(path: Path) -> np.ndarray:
    return soundfile.read(path, always_2d=True, dtype="float64")[0].T


@pytest.mark.parametrize("subtype, limit", [("FLOAT", 1e-6), ("PCM_16", 0), ("PCM_24", 0)])
def test_parts_sum_to_the_input(tmp_path: Path, subtype: str, limit: float):
    quiet = Encoding("wav", subtype)
    files = _write(tmp_path, quiet, 0.25, without=(1,))
    assert files.names == ["01_a.wav", "02_b-b.wav", "03_c.wav"]
    assert files.others == {"residual": "residual.wav", "without": "without.wav"}
    parts = [_read(tmp_path / name) for name in (*files.names, "residual.wav")]
    without = _read(tmp_path / "without.wav")
    gain = 1.0 if subtype == "FLOAT" else 0.25  # which float files have no need of
    total, step = sum(parts), max(quiet.step, 1e-6)
    np.testing.assert_allclose(total, gain * INPUT, atol=0.51 * step)
    np.testing.assert_allclose(without, total - parts[1], atol=limit + 1e-9)
    assert files.clipping == {"policy": "clamp", "gain": 0.25, "samples": 0}
    energies = [np.sum(np.square(x, dtype=np.float64)) for x in (*STEMS, residual_of(INPUT, STEMS))]
    np.testing.assert_allclose(files.energies.shares(), np.array(energies[:3]) / sum(energies))


def test_what_is_not_wanted_is_not_written(tmp_path: Path):
    files = _write(tmp_path, Encoding("flac"), residual=False)
    assert files.others == {} and len(list(tmp_path.iterdir())) == 3
    assert files.clipping["samples"] > 0  # peaks beyond one were cut


def test_an_error_leaves_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="FLAC holds at most 8 channels"):
        StemFiles(tmp_path, ["a"], Encoding("flac"), 16_000, 9)
    with pytest.raises(KeyError):
        with StemFiles(tmp_path, ["a"], Encoding(), 16_000, 1):
            raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_spool_gives_back_what_is_kept(tmp_path: Path):
    with Spool(tmp_path, 3, 2) as spool:
        for start in range(0, 9000, 4000):
            cut = slice(start, start + 4000)
            spool.write(INPUT[:, cut], STEMS[:, :, cut])
        for kept in ([0, 1, 2], [2], []):
            blocks = list(spool.blocks(kept))
            np.testing.assert_array_equal(np.concatenate([b for b, _ in blocks], -1), INPUT)
            np.testing.assert_array_equal(np.concatenate([b for _, b in blocks], -1), STEMS[kept])
        gain = gain_to_fit(lambda: spool.blocks([0, 1, 2]), Encoding("wav", "PCM_16", "rescale"))
        peak = max(np.abs(INPUT).max(), np.abs(STEMS).max())
        assert gain == pytest.approx((1 - 5 * 2**-15) / peak)
        assert gain_to_fit(lambda: spool.blocks([0]), Encoding("wav", "FLOAT", "rescale")) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", [Encoding("wav", "PCM_16", "rescale"), Encoding("ogg")])
def test_the_input_without_a_stem_fits_too(tmp_path: Path, encoding: Encoding):
    """What is taken out is in opposite phase: the rest is the louder."""
    encoding = dataclasses.replace(encoding, clip="rescale")
    whole_CT = 0.9 * np.sin(np.arange(3000) * 0.1, dtype=np.float32)[None]
    stems_SCT = np.stack([-whole_CT, whole_CT])
    gain = gain_to_fit(lambda: [(whole_CT, stems_SCT)], encoding, (0,))
    assert gain == pytest.approx((1 - 4 * encoding.step) / 1.8, abs=1e-5)
    with StemFiles(
        tmp_path, ["a", "b"], encoding, 16_000, 1, gain=gain, selection=Selection(without=(0,))
    ) as files:
        files.write(whole_CT, stems_SCT)
    assert files.clipping["samples"] == 0
    without_CT = _read(tmp_path / f"without.{encoding.format}")[:, :3000]
    np.testing.assert_allclose(without_CT, 2 * gain * whole_CT, atol=0.05)


@pytest.mark.parametrize(
    "values, message",
    [
        (("avi",), "format='avi' is not known"),
        (("ogg", "PCM_16"), "format ogg cannot hold subtype PCM_16"),
        (("wav", None, "fold"), "clip='fold' is not known"),
    ],
)
def test_encodings_that_cannot_be(values: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Encoding(*values)
