"""Sounds and pictures of validation mixtures, for the board."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from opensep_jax.signal.pictures import level_image, spectrogram_db, unit_image
from opensep_jax.signal.stft import Stft

_WIDTH, _HEIGHT, _CAPTION, _GAP = 320, 128, 20, 4  # pixels of a picture and around it
_COLUMNS = ("target", "estimate", "mask")


def separation_panel(
    prompts: Sequence[str],
    sources_ST: np.ndarray,
    stems_ST: np.ndarray,
    mask_SFN: np.ndarray,
    spec: Stft,
) -> Image.Image:
    """The mixture on top, then a row for each source: target, estimate and mask.

    All spectrograms share a scale of 70 dB below the loudest point of the mixture; masks go from 0
    (black) to 1 (white).

    Args:
        prompts: what each source was asked for with.
        sources_ST: true sources, float32; they sum to the mixture.
        stems_ST: estimates.
        mask_SFN: masks in [0, 1].
        spec: of the spectrograms.
    """
    wave_1T = sources_ST.sum(0, keepdims=True)
    levels = [spectrogram_db(wave, spec, _WIDTH) for wave in (*wave_1T, *sources_ST, *stems_ST)]
    top_db = float(levels[0].max())
    mixture, *pictures = [level_image(level, top_db, _HEIGHT) for level in levels]
    targets, estimates = pictures[: len(prompts)], pictures[len(prompts) :]
    masks = [unit_image(mask_FN, _HEIGHT) for mask_FN in mask_SFN]

    rows = [[("mixture", mixture)]]
    for prompt, *row in zip(prompts, targets, estimates, masks, strict=True):
        names = (f"{_COLUMNS[0]}: {prompt}", *_COLUMNS[1:])
        rows.append(list(zip(names, row, strict=True)))
    cell = (_WIDTH + _GAP, _CAPTION + _HEIGHT + _GAP)
    panel = Image.new("RGB", (len(_COLUMNS) * cell[0], len(rows) * cell[1]), "white")
    draw = ImageDraw.Draw(panel)
    for y, row in enumerate(rows):
        for x, (name, picture) in enumerate(row):
            left, top = x * cell[0], y * cell[1]
            draw.text((left + 2, top + 2), _shortened(name), "black", ImageFont.load_default(13))
            panel.paste(picture.resize((_WIDTH, _HEIGHT)), (left, top + _CAPTION))
    return panel


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """What a validation lets people hear and see, by name.

    Attributes:
        sample_rate_hz: of the sounds.
        sounds: float32 [T].
        pictures: of any size.
        texts: Markdown.
    """

    sample_rate_hz: int
    sounds: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    pictures: dict[str, Image.Image] = dataclasses.field(default_factory=dict)
    texts: dict[str, str] = dataclasses.field(default_factory=dict)

    def add_separation(
        self,
        name: str,
        prompts: Sequence[str],
        sources_ST: np.ndarray,
        stems_ST: np.ndarray,
        mask_SFN: np.ndarray,
        spec: Stft,
    ) -> None:
        """Adds the mixture, targets and estimates as sounds, and their `separation_panel`."""
        self.sounds[f"{name}/mixture"] = sources_ST.sum(0)
        for number, (source_T, stem_T) in enumerate(zip(sources_ST, stems_ST, strict=True), 1):
            self.sounds[f"{name}/{number}_target"] = source_T
            self.sounds[f"{name}/{number}_estimate"] = stem_T
        self.pictures[name] = separation_panel(prompts, sources_ST, stems_ST, mask_SFN, spec)

    def add_caption(self, name: str, wave_T: np.ndarray, text: str) -> None:
        """Adds a mixture and what was said of it."""
        self.sounds[f"{name}/mixture"] = wave_T
        self.texts[name] = text


def _shortened(text: str) -> str:
    """A caption that fits above a picture."""
    most = _WIDTH // 7
    return text if len(text) <= most else f"{text[: most - 3]}..."
