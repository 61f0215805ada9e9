"""Pictures of separations: what is where."""

import numpy as np

from opensep_jax.signal.stft import Stft
from opensep_jax.training.panels import Exhibit, separation_panel

SPEC = Stft(256, 64)


def _sources() -> np.ndarray:
    """A low and a high tone, [2, T]."""
    time_T = np.arange(8000) / 8000
    return np.stack([0.5 * np.sin(2 * np.pi * hz * time_T) for hz in (500, 3500)]).astype("f4")


def _masks() -> np.ndarray:
    """The lower and the upper half of the bins, [2, F, N]."""
    low_FN = np.zeros((SPEC.bins, SPEC.frames(8000)), np.float32)
    low_FN[: SPEC.bins // 2] = 1
    return np.stack([low_FN, 1 - low_FN])


def test_panel_shows_each_thing_in_its_place():
    sources_ST = _sources()
    panel = separation_panel(["low", "high"], sources_ST, 0 * sources_ST, _masks(), SPEC)
    brightness = np.asarray(panel.convert("L"), float)
    height, width = brightness.shape[0] / 3, brightness.shape[1] / 3

    def level(row: int, column: int, upper: bool) -> float:
        """Brightest row of pixels in the upper or lower half of a picture."""
        top, left = int(row * height) + 20, int(column * width) + 8
        rows = slice(top, top + 60) if upper else slice(top + 68, top + 126)
        return brightness[rows, left : left + 280].mean(1).max()

    assert level(0, 0, upper=False) > 150 and level(0, 0, upper=True) > 150  # both tones
    assert level(1, 0, upper=False) > 150 > 60 > level(1, 0, upper=True)  # target: the low tone
    assert level(2, 0, upper=True) > 150 > 60 > level(2, 0, upper=False)
    for row in (1, 2):  # the estimates are silent
        assert max(level(row, 1, upper=True), level(row, 1, upper=False)) < 5
    assert level(1, 2, upper=False) > 200 and level(1, 2, upper=True) < 5  # masks
    assert level(2, 2, upper=True) > 200 and level(2, 2, upper=False) < 5


def test_panel_does_not_depend_on_gain():
    sources_ST = _sources()
    pictures = [
        np.asarray(
            separation_panel(["a", "b"], g * sources_ST, g * sources_ST, _masks(), SPEC), int
        )
        for g in (1.0, 0.01)
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 2


def test_long_prompts_do_not_run_into_the_next_column():
    sources_ST = _sources()
    short, long = (
        np.asarray(separation_panel([name, "b"], sources_ST, sources_ST, _masks(), SPEC), int)
        for name in ("a", "a very long caption " * 20)
    )
    width = short.shape[1] // 3
    np.testing.assert_array_equal(short[:, width:], long[:, width:])


def test_exhibit_of_a_separation():
    sources_ST, exhibit = _sources(), Exhibit(8000)
    exhibit.add_separation("x", ["low", "high"], sources_ST, -sources_ST, _masks(), SPEC)
    assert list(exhibit.pictures) == ["x"]
    np.testing.assert_array_equal(exhibit.sounds.pop("x/mixture"), sources_ST.sum(0))
    for number, source_T in enumerate(sources_ST, 1):
        np.testing.assert_array_equal(exhibit.sounds.pop(f"x/{number}_target"), source_T)
        np.testing.assert_array_equal(exhibit.sounds.pop(f"x/{number}_estimate"), -source_T)
    assert not exhibit.sounds
