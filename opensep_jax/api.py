"""The Python interface: a checkpoint that separates sounds of any length, rate and channel count.

separator = Separator.from_checkpoint("demo")
separation = separator.separate(samples_CT, 44100, ["a dog barks", "a cello plays"])
separation.stems, separation.residual  # [S, C, T] and [C, T]; together they are the input
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from opensep_jax.checkpoint import shipped
from opensep_jax.separator import (
    MASK_RULES,
    SeparatorNet,
    abstract_params,
    analyse,
    build_separator,
    masks_of,
    synthesise,
)
from opensep_jax.signal.audio import resample
from opensep_jax.signal.streaming import separate_windows, windows_for
from opensep_jax.text.embed import TextEncoder, load_text_encoder
from opensep_jax.text.source import Source

_TOKEN_BUCKETS = (32, 64, 128, 256, 512)  # padded prompt lengths that are compiled for
_CHANNEL_BUCKETS = (1, 2, 4, 8)  # channels that are transformed at a time


@dataclasses.dataclass(frozen=True)
class SeparatedSource:
    """One source of a separation.

    Attributes:
        name: what it is; equals the prompt when the source was queried.
        prompt: the text that the network was conditioned on.
        properties: how it sounds, if that is known; see `text.source.Source`.
        energy_share: energy of its stem over that of all stems and the residual, in [0, 1]; 0
            where all of them are silent.
    """

    name: str
    prompt: str
    properties: dict
    energy_share: float


@dataclasses.dataclass(frozen=True, eq=False)
class Separation:
    """Stems of one input, at its sample rate.

    Attributes:
        stems: float32 [S, C, T], in the order of the queries.
        residual: float32 [C, T], input minus the sum of the stems.
        sample_rate_hz: of both.
        sources: what the stems are.
        notes: what the user should know, such as where the model's band ends.
    """

    stems: np.ndarray
    residual: np.ndarray
    sample_rate_hz: int
    sources: tuple[SeparatedSource, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Text:
    """Embedded prompts, padded to P and L of a bucket; `cut` of them were too long."""

    states_PLC: np.ndarray
    mask_PL: np.ndarray
    real_P: np.ndarray
    count: int
    cut: int


class Separator:
    """A network with its text encoder, compiled once per size of input.

    Attributes:
        net: network and spectrogram.
        encoder: of the prompts.
        windows: how long signals are cut.
        masks: how the masks of several queries are reconciled, a name in
            `separator.MASK_RULES`: `limit` leaves what no query claims in the residual,
            `normalise` presumes that the queries name every source (and scores higher then).
        models: names, ids and settings of the networks, JSON types.
    """

    def __init__(
        self,
        net: SeparatorNet,
        params: dict,
        encoder: TextEncoder,
        *,
        window_s: float,
        models: dict,
        masks: str = "limit",
        batch: int | None = None,
    ):
        """Takes what `from_checkpoint` has read.

        Args:
            net: network and spectrogram.
            params: parameters of the network.
            encoder: the text encoder that it was trained with.
            window_s: length of a window, seconds; rounded up to the hop.
            models: see the class.
            masks: see the class.
            batch: windows per call; default 1 on CPU, 8 elsewhere.
        """
        if masks not in MASK_RULES:
            raise ValueError(f"masks={masks!r} is not known; known are {', '.join(MASK_RULES)}")
        self.net, self.encoder, self.models, self.masks = net, encoder, models, masks
        self.windows = windows_for(net.stft, math.ceil(window_s * net.sample_rate_hz))
        self._batch = batch or (1 if jax.default_backend() == "cpu" else 8)
        self._params = jax.device_put(params)
        self._text: tuple[tuple[str, ...], _Text] | None = None
        self._compiled = _compiled(net)

    @classmethod
    def from_checkpoint(
        cls,
        name: str | os.PathLike = "demo",
        *,
        text_encoder: str | None = None,
        masks: str = "limit",
        batch: int | None = None,
    ) -> "Separator":
        """Loads a separator and its text encoder.

        Args:
            name: a shipped checkpoint, an exported folder, or a training workdir; see
                `checkpoint.shipped.load`.
            text_encoder: where the encoder's weights are, if not under the name that the
                checkpoint gives (see `checkpoint.weights.resolve`).
            masks: `limit` or `normalise`, see the class.
            batch: windows per call; default 1 on CPU, 8 elsewhere.

        Raises:
            ValueError: the checkpoint is unknown or damaged, or the text encoder is not the one
                that it was trained with.
            WeightsError: the text encoder could not be downloaded.
        """
        config, net, params = load_separator(name)
        trained = config["text_encoder"]
        beside = Path(name) / trained["name"]  # where an imported checkpoint brings its own
        encoder_name = text_encoder or (str(beside) if beside.is_dir() else trained["name"])
        encoder = load_text_encoder(encoder_name, trained["max_tokens"])
        if encoder.id != trained["id"]:
            raise ValueError(
                f"checkpoint {str(name)!r} was trained with the text encoder {trained['id']} "
                f"({trained['name']!r}), but {encoder_name!r} is {encoder.id}"
            )
        models = {
            "separator": {
                "checkpoint": str(name),
                "id": f"{config['model']['size']}-{shipped.params_id(params)}",
                "steps": config.get("steps"),
                "sample_rate_hz": config["sample_rate_hz"],
                "window_s": config["window_s"],
            },
            "text_encoder": {"name": trained["name"], "id": encoder.id},
        }
        window_s = config["window_s"]
        return cls(net, params, encoder, window_s=window_s, models=models, masks=masks, batch=batch)

    @property
    def traces(self) -> dict[str, int]:
        """How often each compiled function was traced in this process, by its name.

        `masks`, the network, is traced once for each number of prompts (a power of two) and length
        of the longest (a bucket of 32 to 512 tokens), whatever lengths, rates and channels come;
        the others once for each number of channels (1, 2, 4 or 8 at a time) besides.
        """
        return dict(self._compiled.traces)

    def separate(
        self, samples_CT: np.ndarray, sample_rate_hz: int, queries: Sequence[str | Source]
    ) -> Separation:
        """Separates what the queries name.

        Args:
            samples_CT: float [C, T] or [T], T >= 1, any gain, finite.
            sample_rate_hz: of the input; beyond the model's the upper band goes to the residual.
            queries: a text per source, used verbatim as the prompt; or sources with prompts of
                their own, as `text.parse.Parser` gives them.

        Returns:
            Stems and residual in the input's length, rate and channels. Their sum is the input to
            1e-6 relative; the masks of all queries together never exceed one.

        Raises:
            ValueError: samples or queries are not as above.
        """
        samples_CT, sample_rate_hz = _checked_samples(samples_CT, sample_rate_hz)
        asked = _checked_queries(queries)
        text = self._embed(tuple(source.prompt for source in asked))
        stems = np.zeros((len(queries), *samples_CT.shape), np.float32)
        rate_hz, length = self.net.sample_rate_hz, samples_CT.shape[1]
        wave_CT = resample(samples_CT, sample_rate_hz, rate_hz)
        if rate_hz == sample_rate_hz:
            self._fill(stems, wave_CT, text)
        else:
            inner = np.zeros((len(queries), *wave_CT.shape), np.float32)
            self._fill(inner, wave_CT, text)
            for stem_CT, inner_CT in zip(stems, inner, strict=True):
                stem_CT[:] = resample(inner_CT, rate_hz, sample_rate_hz, length)
        residual = _residual(samples_CT, stems)
        sources, notes = _sources(asked, stems, residual), self._notes(sample_rate_hz, text)
        return Separation(stems, residual, sample_rate_hz, sources, notes)

    def _fill(self, stems: np.ndarray, wave_CT: np.ndarray, text: _Text) -> None:
        """Stems [S, C, T] of a wave at the model's rate, written in place."""
        process, position = functools.partial(self._process, text=text), 0
        for block_SCT in separate_windows(wave_CT, self.windows, process, self._batch):
            stems[..., position : position + block_SCT.shape[-1]] = block_SCT
            position += block_SCT.shape[-1]

    def _process(self, wave_WCT: np.ndarray, text: _Text) -> np.ndarray:
        """Stems [W, S, C, T] of windows; a mask is drawn from all channels of a window."""
        channels = wave_WCT.shape[1]
        # Squares of float32 samples beyond 1e16 would overflow; a power of two is exact.
        exponent_W = np.frexp(np.abs(wave_WCT).max((1, 2)))[1]
        scale_W = np.ldexp(np.float32(1), np.maximum(exponent_W, 0))[:, None, None]
        wave_WCT = wave_WCT / scale_W
        size = next((b for b in _CHANNEL_BUCKETS if b >= channels), _CHANNEL_BUCKETS[-1])
        spectra, energy_WFN = [], 0.0
        for first in range(0, channels, size):
            part_WCT = wave_WCT[:, first : first + size]
            padding = ((0, 0), (0, size - part_WCT.shape[1]), (0, 0))
            spectrum_WCFN, part_WFN = self._compiled.analyse(np.pad(part_WCT, padding))
            spectra.append(spectrum_WCFN)
            energy_WFN = energy_WFN + part_WFN
        texts = [
            np.broadcast_to(x, (len(wave_WCT), *x.shape))
            for x in (text.states_PLC, text.mask_PL, text.real_P)
        ]
        mask_WPFN = self._compiled.masks(self._params, energy_WFN / channels, *texts, self.masks)
        length = wave_WCT.shape[-1]
        stems = [self._compiled.synthesise(s, mask_WPFN, length) for s in spectra]
        parts = [np.asarray(stem_WPCT)[:, : text.count] for stem_WPCT in stems]
        stems_WSCT = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        return stems_WSCT[:, :, :channels] * scale_W[:, None]

    def _embed(self, queries: tuple[str, ...]) -> _Text:
        """Token states of the prompts, padded to their buckets; the last ones are kept."""
        if self._text and self._text[0] == queries:
            return self._text[1]
        cut_before = self.encoder.truncated
        states = self.encoder.encode(queries)
        prompts = 1 << (len(queries) - 1).bit_length()
        longest = max(len(state) for state in states)
        tokens = next((b for b in _TOKEN_BUCKETS if b >= longest), longest)
        states_PLC = np.zeros((prompts, tokens, self.encoder.width), states[0].dtype)
        mask_PL = np.zeros((prompts, tokens), bool)
        mask_PL[:, 0] = True  # attention of a padding prompt needs something to look at
        for row, state_LC in enumerate(states):
            states_PLC[row, : len(state_LC)] = state_LC
            mask_PL[row, : len(state_LC)] = True
        real_P = np.arange(prompts) < len(queries)
        cut = self.encoder.truncated - cut_before
        text = _Text(states_PLC, mask_PL, real_P, len(queries), cut)
        self._text = (queries, text)
        return text

    def _notes(self, sample_rate_hz: int, text: _Text) -> tuple[str, ...]:
        notes = []
        if sample_rate_hz > self.net.sample_rate_hz:
            band_hz = self.net.sample_rate_hz / 2
            notes.append(f"sound above {band_hz:g} Hz, the model's band, is in the residual")
        if text.cut:
            notes.append(f"prompts cut to {self.encoder.max_tokens} tokens: {text.cut}")
        return tuple(notes)


class _Compiled:
    """The three parts of the signal path for one network, jitted, with counts of their traces."""

    def __init__(self, net: SeparatorNet):
        self.traces: dict[str, int] = {}
        self.analyse = self._counted("analyse", functools.partial(analyse, net))
        self.masks = self._counted("masks", functools.partial(masks_of, net), static_argnums=5)
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


def load_separator(name: str | os.PathLike) -> tuple[dict, SeparatorNet, dict]:
    """Config, network and parameters of a checkpoint; see `checkpoint.shipped.load`."""
    config, params = shipped.load(
        name, lambda config: abstract_params(_build(config), config["text_encoder"]["width"])
    )
    return config, _build(config), params


def _build(config: dict) -> SeparatorNet:
    rate_hz = config["sample_rate_hz"]
    model = {key: config["model"][key] for key in ("size", "dtype")}
    return build_separator(**model, **config["stft"], remat=False, sample_rate_hz=rate_hz)


def drop_faint(
    separation: Separation, samples_CT: np.ndarray, min_energy_share: float
) -> tuple[Separation, tuple[SeparatedSource, ...]]:
    """Leaves stems of negligible energy in the residual.

    Args:
        separation: of an input.
        samples_CT: that input, float32 [C, T].
        min_energy_share: sources with a smaller `energy_share` are dropped.

    Returns:
        The separation without them, and what they were.
    """
    loud = [source.energy_share >= min_energy_share for source in separation.sources]
    if all(loud):
        return separation, ()
    dropped = tuple(s for s, keep in zip(separation.sources, loud, strict=True) if not keep)
    asked = [s for s, keep in zip(separation.sources, loud, strict=True) if keep]
    stems = separation.stems[loud]
    residual = _residual(samples_CT, stems)
    sources = _sources(asked, stems, residual)
    kept = dataclasses.replace(separation, stems=stems, residual=residual, sources=sources)
    return kept, dropped


def nothing_found(samples_CT: np.ndarray, sample_rate_hz: int) -> Separation:
    """The separation of a recording in which nothing is heard: all of it is residual."""
    stems = np.zeros((0, *samples_CT.shape), np.float32)
    return Separation(stems, samples_CT, sample_rate_hz, (), ("nothing was heard in it",))


def _checked_samples(samples_CT: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, int]:
    samples_CT = np.asarray(samples_CT)
    if not np.issubdtype(samples_CT.dtype, np.floating):
        raise ValueError(f"need float samples in [-1, 1], got {samples_CT.dtype}")
    if samples_CT.ndim == 1:
        samples_CT = samples_CT[None]
    if samples_CT.ndim != 2 or not samples_CT.size:
        raise ValueError(f"need samples [C, T] or [T], T >= 1, got shape {samples_CT.shape}")
    if not np.isfinite(samples_CT).all():
        raise ValueError("samples are NaN or infinite")
    if sample_rate_hz < 1 or sample_rate_hz != int(sample_rate_hz):
        raise ValueError(f"need a whole, positive sample rate, got {sample_rate_hz} Hz")
    return np.asarray(samples_CT, np.float32), int(sample_rate_hz)


def _checked_queries(queries: Sequence[str | Source]) -> tuple[Source, ...]:
    if isinstance(queries, str):
        raise ValueError("queries are a list of texts, not one text")
    sources = tuple(Source(q, {}, q) if isinstance(q, str) else q for q in queries)
    wrong = [s for s in sources if not isinstance(s, Source) or not s.prompt.strip()]
    if wrong or not sources:
        raise ValueError(f"need at least one query and none empty, got {list(queries)!r}")
    for source in sources:
        try:
            source.prompt.encode()
        except UnicodeEncodeError as error:  # half a character, of bytes that are not UTF-8
            raise ValueError(
                f"query {source.prompt!r} is not valid Unicode: {error.reason}"
            ) from error
    return sources


def _sources(
    asked: Sequence[Source | SeparatedSource], stems: np.ndarray, residual: np.ndarray
) -> tuple[SeparatedSource, ...]:
    energies = [_energy(x) for x in (*stems, residual)]
    total = sum(energies) or 1.0
    return tuple(
        SeparatedSource(source.name, source.prompt, source.properties, energy / total)
        for source, energy in zip(asked, energies, strict=False)
    )


def _residual(samples_CT: np.ndarray, stems: np.ndarray) -> np.ndarray:
    """What the stems leave of the input, float32 [C, T]."""
    residual = np.empty_like(samples_CT)
    for channel, out_T in enumerate(residual):
        # In float64: the sum of many stems would round more than the promised 1e-6.
        out_T[:] = samples_CT[channel] - stems[:, channel].sum(0, dtype=np.float64)
    return residual


def _energy(samples_CT: np.ndarray) -> float:
    """Sum of squares in float64, a channel at a time."""
    return sum(float(np.sum(np.square(x, dtype=np.float64))) for x in samples_CT)
