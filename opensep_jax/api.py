"""The Python interface: a checkpoint that separates sounds of any length, rate and channel count.

separator = Separator.from_pretrained("demo")
separation = separator.separate(samples_CT, 44100, ["a dog barks", "a cello plays"])
separation.stems, separation.residual  # [S, C, T] and [C, T]; together they are the input
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from opensep_jax.checkpoint import shipped
from opensep_jax.discovery import MIN_ENERGY_SHARE, Discovery
from opensep_jax.separation.confidence import Evidence
from opensep_jax.separation.engine import Engine, Processed, Text
from opensep_jax.separation.result import SeparatedSource, Separation, drop_faint, judge
from opensep_jax.separation.stemfiles import Energies, residual_of
from opensep_jax.separation.stream import Task, separate_all
from opensep_jax.separator import SeparatorNet, abstract_params, net_of
from opensep_jax.signal.audio import BLOCK_FRAMES
from opensep_jax.text.caption import load_captioner
from opensep_jax.text.embed import load_text_encoder
from opensep_jax.text.parse import load_parser
from opensep_jax.text.source import Source

__all__ = ["SeparatedSource", "Separation", "Separator", "load_separator"]

_MAX_CHANNELS = 1024  # as many as a file has; more are samples of a transposed array


class Separator:
    """A network with its text encoder, compiled once per shape.

    Attributes:
        engine: what runs the network.
        models: names, ids and settings of the networks, JSON types.
    """

    def __init__(self, engine: Engine, models: dict, discovery: Discovery | None = None):
        """Takes what `from_pretrained` has read.

        Args:
            engine: what runs the network.
            models: see the class.
            discovery: what finds sources that nobody has named; by default the shipped captioner
                and language model, loaded when they are first needed.
        """
        self.engine, self.models = engine, models
        self._given_discovery = discovery

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike = "demo",
        *,
        text_encoder: str | None = None,
        masks: str = "limit",
        batch: int | None = None,
        discovery: Discovery | None = None,
    ) -> "Separator":
        """Loads a separator and its text encoder.

        Args:
            name_or_path: a shipped checkpoint, an exported folder, or a training workdir; see
                `checkpoint.shipped.load`.
            text_encoder: where the encoder's weights are, if not under the name that the
                checkpoint gives (see `checkpoint.weights.resolve`).
            masks: how the masks of several queries are reconciled: `limit` leaves what no query
                claims in the residual, `normalise` presumes that the queries name every source (and
                scores higher then).
            batch: windows per call; default 1 on CPU, 8 elsewhere.
            discovery: what finds sources that nobody has named; the shipped one by default.

        Raises:
            ValueError: the checkpoint is unknown or damaged, or the text encoder is not the one
                that it was trained with.
            WeightsError: the text encoder could not be downloaded.
        """
        config, net, params = load_separator(name_or_path)
        trained = config["text_encoder"]
        # Where an imported checkpoint brings its own.
        beside = Path(name_or_path).expanduser() / trained["name"]
        encoder_name = text_encoder or (str(beside) if beside.is_dir() else trained["name"])
        encoder = load_text_encoder(encoder_name, trained["max_tokens"])
        if encoder.id != trained["id"]:
            raise ValueError(
                f"checkpoint {str(name_or_path)!r} was trained with the text encoder "
                f"{trained['id']} ({trained['name']!r}), but {encoder_name!r} is {encoder.id}"
            )
        models = {
            "separator": {
                "checkpoint": str(name_or_path),
                "id": f"{config['model']['size']}-{shipped.params_id(params)}",
                "steps": config.get("steps"),
                "sample_rate_hz": config["sample_rate_hz"],
                "window_s": config["window_s"],
            },
            "text_encoder": {"name": trained["name"], "id": encoder.id},
        }
        engine = Engine(net, params, encoder, window_s=config["window_s"], masks=masks, batch=batch)
        return cls(engine, models, discovery)

    @functools.cached_property
    def discovery(self) -> Discovery:
        """What finds sources that nobody has named."""
        return self._given_discovery or Discovery(load_captioner("demo"), load_parser(batch=1))

    def separate(
        self,
        wave: np.ndarray,
        sample_rate_hz: int,
        queries: Sequence[str | Source] | None = None,
        *,
        caption: str | None = None,
    ) -> Separation:
        """Separates what the queries name, what a caption names, or whatever is heard.

        Args:
            wave: float [C, T] or [T], T >= 1, any gain, finite.
            sample_rate_hz: of the input; beyond the model's the upper band goes to the residual.
            queries: a text per source, used verbatim as the prompt; or sources with prompts of
                their own, as `text.parse.Parser` gives them. Without any, they are found: in the
                caption, or by listening. Then stems of negligible energy stay in the residual.
            caption: what is heard in the wave, for want of queries; an empty one is none.

        Returns:
            Stems and residual in the input's length, rate and channels. Their sum is the input to
            1e-6 relative; the masks of all queries together never exceed one.

        Raises:
            ValueError: samples or queries are not as above, or nobody can listen.
        """
        samples_CT, sample_rate_hz = _checked_samples(wave, sample_rate_hz)
        if queries is not None:
            sources = checked_queries(queries)
            return self._separate(samples_CT, sample_rate_hz, sources, caption or None)
        heard = caption or self.discovery.hear(samples_CT, sample_rate_hz)
        (found,) = self.discovery.find([heard])
        separation = self._separate(
            samples_CT, sample_rate_hz, found.sources, found.caption, listens=not caption
        )
        if caption:
            return separation
        return drop_faint(separation, samples_CT, MIN_ENERGY_SHARE)[0]

    def text_of(self, sources: Sequence[Source]) -> Text | None:
        """What the engine needs to know of sources; None for none."""
        return self.engine.embed([source.prompt for source in sources]) if sources else None

    def notes(self, sample_rate_hz: int, text: Text | None) -> tuple[str, ...]:
        """What the user should know of the separation of a signal of this rate."""
        if text is None:
            return ("nothing was heard in it",)
        notes, rate_hz = [], self.engine.net.sample_rate_hz
        if sample_rate_hz > rate_hz:
            notes.append(f"sound above {rate_hz / 2:g} Hz, the model's band, is in the residual")
        if text.cut:
            notes.append(f"prompts cut to {self.engine.encoder.max_tokens} tokens: {text.cut}")
        return tuple(notes)

    def _agreements(self, sources: Sequence[Source], evidence: Evidence) -> list[float | None]:
        """How far the loudest windows of stems sound like their names."""
        names, rate_hz = [source.name for source in sources], self.engine.net.sample_rate_hz
        return self.discovery.agreements(names, evidence.parts(), rate_hz)

    def _separate(
        self,
        samples_CT: np.ndarray,
        sample_rate_hz: int,
        sources: Sequence[Source],
        caption: str | None,
        *,
        listens: bool = False,
    ) -> Separation:
        text, arrays = self.text_of(sources), _Arrays(len(sources), samples_CT)
        wave = _Wave(samples_CT, sample_rate_hz)
        task = Task(lambda: contextlib.nullcontext(wave), text, lambda _: arrays)
        with contextlib.closing(separate_all([task], self.engine)) as events:
            for event in events:
                if event.error is not None:
                    raise event.error
        agreements = self._agreements(sources, arrays.evidence) if listens and sources else None
        judged = judge(sources, arrays.energies.shares(), arrays.evidence, agreements)
        notes = self.notes(sample_rate_hz, text)
        return Separation(arrays.stems, arrays.residual, sample_rate_hz, judged, notes, caption)


class _Wave:
    """An array as a signal; see `stream.Signal`."""

    def __init__(self, samples_CT: np.ndarray, sample_rate_hz: int):
        self.sample_rate_hz, self._samples_CT = sample_rate_hz, samples_CT
        self.channels, self.frames = samples_CT.shape

    def blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, self.frames, BLOCK_FRAMES):
            yield self._samples_CT[:, start : start + BLOCK_FRAMES]


class _Arrays:
    """Stems and residual in memory; see `stream.Sink`."""

    def __init__(self, count: int, samples_CT: np.ndarray):
        self.stems = np.empty((count, *samples_CT.shape), np.float32)
        self.residual = np.empty_like(samples_CT)
        self.energies, self.evidence = Energies(count), Evidence(count)
        self._position = 0

    def heard(self, processed: Processed) -> None:
        self.evidence.add(processed)

    def write(self, input_CT: np.ndarray, stems_SCT: np.ndarray) -> None:
        cut = slice(self._position, self._position + input_CT.shape[1])
        self._position = cut.stop
        self.stems[..., cut], self.residual[:, cut] = stems_SCT, residual_of(input_CT, stems_SCT)
        self.energies.add(stems_SCT, self.residual[:, cut])

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


def load_separator(name: str | os.PathLike) -> tuple[dict, SeparatorNet, dict]:
    """Config, network and parameters of a checkpoint; see `checkpoint.shipped.load`."""
    config, params = shipped.load(
        name, lambda config: abstract_params(net_of(config), config["text_encoder"]["width"])
    )
    return config, net_of(config), params


def checked_queries(queries: Sequence[str | Source]) -> tuple[Source, ...]:
    """Queries as sources.

    Raises:
        ValueError: there are none, or one is empty or no Unicode.
    """
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


def _checked_samples(samples_CT: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, int]:
    samples_CT = np.asarray(samples_CT)
    if not np.issubdtype(samples_CT.dtype, np.floating):
        raise ValueError(f"need float samples in [-1, 1], got {samples_CT.dtype}")
    if samples_CT.ndim == 1:
        samples_CT = samples_CT[None]
    if samples_CT.ndim != 2 or not samples_CT.size:
        raise ValueError(f"need samples [C, T] or [T], T >= 1, got shape {samples_CT.shape}")
    if len(samples_CT) > _MAX_CHANNELS:
        raise ValueError(
            f"need samples [C, T] of at most {_MAX_CHANNELS} channels, got shape "
            f"{samples_CT.shape}: is it [T, C], and should be transposed?"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite then
        samples_CT = samples_CT.astype(np.float32, copy=False)
    if not np.isfinite(samples_CT).all():
        raise ValueError("samples are NaN or infinite in float32")
    if sample_rate_hz < 1 or sample_rate_hz != int(sample_rate_hz):
        raise ValueError(f"need a whole, positive sample rate, got {sample_rate_hz} Hz")
    return samples_CT, int(sample_rate_hz)
