"""A separator on a device: windows of many signals with the prompts of each, in few fixed shapes.

Rows of a batch never look at one another, and a batch always has the same number of rows, so what
becomes of a window does not depend on its company.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from opensep_jax.separator import (
    MASK_RULES,
    SeparatorNet,
    analyse,
    magnitude_products,
    predict_masks,
    reconcile,
    synthesise,
)
from opensep_jax.signal.streaming import Window, windows_for
from opensep_jax.text.embed import TextEncoder

_TOKEN_BUCKETS = (32, 64, 128, 256, 512)  # padded prompt lengths that are compiled for
_PROMPT_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16)  # numbers of prompts; beyond, multiples of 8
_CHANNEL_BUCKETS = (1, 2, 4, 8)  # channels that are transformed at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Embedded prompts, padded to P and L of a bucket; the first `count` are real.

    `cut` of them were too long for the text encoder.
    """

    states_PLC: np.ndarray
    mask_PL: np.ndarray
    count: int
    cut: int


class Row(NamedTuple):
    """A window and what to find in it."""

    window: Window
    text: Text


class Processed(NamedTuple):
    """What becomes of a row.

    Attributes:
        stems_SCT: float32, one for each real prompt.
        products_SS: `separator.magnitude_products` of the stems, float64.
    """

    stems_SCT: np.ndarray
    products_SS: np.ndarray


@dataclasses.dataclass
class Work:
    """Samples times prompts that the network was run on, and how many of them were real."""

    computed: int = 0
    real: int = 0

    @property
    def waste(self) -> float:
        """Share that was padding."""
        return 1 - self.real / max(1, self.computed)


class Engine:
    """The signal path of one network, compiled once for each shape.

    Attributes:
        net: network and spectrogram.
        encoder: of the prompts.
        masks: how masks of several prompts are reconciled, a name in `separator.MASK_RULES`.
        windows: how signals are cut.
        batch: rows of a call.
        work: what was computed so far.
    """

    def __init__(
        self,
        net: SeparatorNet,
        params: dict,
        encoder: TextEncoder,
        *,
        window_s: float,
        masks: str = "limit",
        batch: int | None = None,
    ):
        """Takes a network and its text encoder.

        Args:
            net: network and spectrogram.
            params: parameters of the network.
            encoder: the text encoder that it was trained with.
            window_s: length of a window, seconds; rounded up to the hop.
            masks: see the class.
            batch: see the class; default 1 on CPU, 8 elsewhere.

        Raises:
            ValueError: `masks` is not known.
        """
        if masks not in MASK_RULES:
            raise ValueError(f"masks={masks!r} is not known; known are {', '.join(MASK_RULES)}")
        self.net, self.encoder, self.masks = net, encoder, masks
        self.windows = windows_for(net.stft, math.ceil(window_s * net.sample_rate_hz))
        self.batch = batch or (1 if jax.default_backend() == "cpu" else 8)
        self.work = Work()
        self._params = jax.device_put(params)
        self._compiled = _compiled(net)

    @property
    def traces(self) -> dict[str, int]:
        """How often each compiled function was traced in this process, by its name.

        `masks`, the network, is traced once for each number of prompts, length of the longest (both
        in buckets) and quarters of a window, whatever lengths, rates and channels come; the others
        once for each number of channels (1, 2, 4 or 8 at a time) besides.
        """
        return dict(self._compiled.traces)

    def embed(self, prompts: Sequence[str]) -> Text:
        """Token states of the prompts of one signal, padded to their buckets."""
        states = self.encoder.encode(prompts)
        rows = _prompt_bucket(len(prompts))
        longest = max(len(state_LC) for state_LC in states)
        tokens = next((b for b in _TOKEN_BUCKETS if b >= longest), longest)
        states_PLC = np.zeros((rows, tokens, self.encoder.width), states[0].dtype)
        mask_PL = np.zeros((rows, tokens), bool)
        mask_PL[:, 0] = True  # attention of a padding prompt needs something to look at
        for row, state_LC in enumerate(states):
            states_PLC[row, : len(state_LC)] = state_LC
            mask_PL[row, : len(state_LC)] = True
        return Text(states_PLC, mask_PL, len(prompts), sum(self.encoder.exceeds(prompts)))

    def shape(self, row: Row) -> tuple[int, ...]:
        """Rows of the same shape can go together: channels, samples, prompts, tokens."""
        channels, samples = row.window.samples_CT.shape
        return (_channel_bucket(channels), samples, *row.text.mask_PL.shape)

    def start(self, rows: Sequence[Row]) -> Callable[[], list[Processed]]:
        """Has the device process up to `batch` rows of one shape, and does not wait for it.

        A mask is drawn from all channels of a window.

        Returns:
            What waits for the results, one for each row.
        """
        self._count(rows)
        padded = [*rows, *[rows[-1]] * (self.batch - len(rows))]
        channels = [len(row.window.samples_CT) for row in padded]
        scale_W = self._scales(padded)
        size, widest = self.shape(rows[0])[0], max(channels)
        spectra, energy_WFN = [], 0.0
        for first in range(0, widest, size):
            wave_WCT = np.stack(
                [_part(row.window, first, size) / s for row, s in zip(padded, scale_W, strict=True)]
            )
            spectrum_WCFN, part_WFN = self._compiled.analyse(wave_WCT)
            spectra.append(spectrum_WCFN)
            energy_WFN = energy_WFN + part_WFN
        power_WFN = energy_WFN / np.array(channels, np.float32)[:, None, None]
        states_WPLC = np.stack([row.text.states_PLC for row in padded])
        mask_WPL = np.stack([row.text.mask_PL for row in padded])
        prompts = mask_WPL.shape[1]
        real_WP = np.stack([np.arange(prompts) < row.text.count for row in padded])
        mask_WPFN, products_WPP = self._compiled.masks(
            self._params, power_WFN, states_WPLC, mask_WPL, real_WP, self.masks
        )
        samples = rows[0].window.samples_CT.shape[1]
        stems = [self._compiled.synthesise(s, mask_WPFN, samples) for s in spectra]
        return lambda: _unpacked(rows, stems, products_WPP, scale_W)

    def _scales(self, rows: Sequence[Row]) -> np.ndarray:
        """What windows are divided by, float32 [W].

        They then have a peak of one to two, so that neither squares overflow nor floors matter; a
        power of two is exact. Denormal numbers are as good as none, and a network that hears
        loudness gets quiet windows as they are.
        """
        peaks = [np.abs(row.window.samples_CT).max() for row in rows]
        exponent_W = np.frexp(np.array(peaks, np.float32))[1] - 1
        least = 0 if self.net.hears_loudness else -126
        return np.ldexp(np.float32(1), np.maximum(exponent_W, least))

    def _count(self, rows: Sequence[Row]) -> None:
        """Adds to what was computed: rows times samples times prompts."""
        _, samples, prompts, _ = self.shape(rows[0])
        self.work.computed += self.batch * samples * prompts
        for window, text in rows:
            beyond = 0 if window.total is None else window.start + samples - window.total
            self.work.real += (samples - max(0, beyond)) * text.count


def _part(window: Window, first: int, size: int) -> np.ndarray:
    """Channels of a window, zeros beyond the last."""
    part_CT = window.samples_CT[first : first + size]
    return np.pad(part_CT, ((0, size - len(part_CT)), (0, 0)))


def _unpacked(
    rows: Sequence[Row],
    stems: Sequence[jax.Array],
    products_WPP: jax.Array,
    scale_W: np.ndarray,
) -> list[Processed]:
    """Waits for what the device makes of rows, and takes padding and scale off it again.

    Args:
        rows: real ones; those that fill a batch up come behind them.
        stems: of some channels each, [W, P, C, T].
        products_WPP: `separator.magnitude_products` of the stems.
        scale_W: what the windows were divided by.
    """
    parts, products_WPP = [np.asarray(stem) for stem in stems], np.asarray(products_WPP)
    found = []
    for i, row in enumerate(rows):
        count, channels = row.text.count, len(row.window.samples_CT)
        stems_SCT = [part[i, :count] for part in parts]
        stems_SCT = stems_SCT[0] if len(parts) == 1 else np.concatenate(stems_SCT, axis=1)
        products_SS = products_WPP[i, :count, :count].astype(np.float64) * float(scale_W[i]) ** 2
        found.append(Processed(stems_SCT[:, :channels] * scale_W[i], products_SS))
    return found


def _prompt_bucket(count: int) -> int:
    return next((b for b in _PROMPT_BUCKETS if b >= count), -(-count // 8) * 8)


def _channel_bucket(count: int) -> int:
    return next((b for b in _CHANNEL_BUCKETS if b >= count), _CHANNEL_BUCKETS[-1])


class _Compiled:
    """The three parts of the signal path for one network, jitted, with counts of their traces."""

    def __init__(self, net: SeparatorNet):
        def masks(
            params: dict,
            power_WFN: jax.Array,
            text_WPLC: jax.Array,
            text_mask_WPL: jax.Array,
            real_WP: jax.Array,
            rule: str,
        ) -> tuple[jax.Array, jax.Array]:
            drawn_WPFN = predict_masks(net, params, power_WFN, text_WPLC, text_mask_WPL)
            mask_WPFN = reconcile(drawn_WPFN, real_WP, rule)
            return mask_WPFN, magnitude_products(mask_WPFN, power_WFN)

        self.traces: dict[str, int] = {}
        self.analyse = self._counted("analyse", functools.partial(analyse, net))
        self.masks = self._counted("masks", masks, static_argnums=5)
        self.synthesise = self._counted(
            "synthesise", functools.partial(synthesise, net), static_argnums=2
        )

    def _counted(self, name: str, function: Callable, **options: object) -> jax.stages.Wrapped:
        self.traces[name] = 0

        def traced(*args: object) -> object:
            self.traces[name] += 1
            return function(*args)

        return jax.jit(traced, **options)


@functools.cache
def _compiled(net: SeparatorNet) -> _Compiled:
    """One per network and process: separators of equal networks share what is compiled."""
    return _Compiled(net)
