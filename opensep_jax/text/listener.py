"""The one path from a waveform to a caption, shared by training, evaluation and inference.

A window is heard twice, the second time with its halves exchanged, and what is found is averaged.
The tag head proposes names, every set of them is worded, the decoder rates the captions, and the
one is said that is expected to name most sources rightly. Decoding greedily, word by word, was
worse in every respect: "a" begins most captions, so its first clause is hardly ever left out.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.models.captioner import SIZES, Captioner
from opensep_jax.signal.mel import Mel, decibels, mel_power
from opensep_jax.text.compose import Vocabulary, compose

_PROPOSED = 6  # names that the tags propose: two more than a caption has
_FLOOR = 1e-3  # of mel power where the RMS of the sound is one: about 44 dB below white noise


@dataclasses.dataclass(frozen=True)
class Listener:
    """A captioner with its ears and its words; static under jit.

    Attributes:
        model: the network.
        mel: what it hears.
        clauses: pairs of every name it knows, in the order of the tag head, and what it says of it.
        sources: most sources of a caption.
    """

    model: Captioner
    mel: Mel
    clauses: tuple[tuple[str, str], ...]
    sources: int

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Words of all captions."""
        return Vocabulary.of(said for _, said in self.clauses)

    @functools.cached_property
    def caption_words(self) -> int:
        """L, words of the longest caption with its connectives and stop."""
        return self.sources * (1 + max(len(said.split()) for _, said in self.clauses))

    @functools.cached_property
    def white_M(self) -> np.ndarray:
        """Mean mel power of white noise whose RMS is one, float32 [M]."""
        size = self.mel.n_fft_samples
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        return (np.sum(window**2) * self.mel.filters_FM.sum(0)).astype(np.float32)


def build_listener(
    *,
    size: str,
    sample_rate_hz: int,
    n_fft_samples: int,
    hop_samples: int,
    low_hz: float,
    high_hz: float,
    clauses: Mapping[str, str],
    max_sources: int,
) -> Listener:
    """Network by the name of its size (`models.captioner.SIZES`), its spectrogram and words.

    Args:
        size: name of the size.
        sample_rate_hz: of what it hears.
        n_fft_samples: window of the spectrogram.
        hop_samples: distance of its frames.
        low_hz: lower edge of the first mel band.
        high_hz: upper edge of the last one.
        clauses: what is said of every name.
        max_sources: most sources of a caption.

    Raises:
        ValueError: the size is not known, or its captions are too short for so many sources.
    """
    if size not in SIZES:
        raise ValueError(f"captioner.size={size!r} is not known; known are {', '.join(SIZES)}")
    pairs = tuple(sorted(clauses.items()))
    mel = Mel(
        sample_rate_hz, n_fft_samples, hop_samples, SIZES[size].mels, low_hz, high_hz,
        pad_mode="constant",
    )  # fmt: skip
    words = len(Vocabulary.of(clauses.values()))
    listener = Listener(Captioner(SIZES[size], len(pairs), words), mel, pairs, max_sources)
    if listener.caption_words > SIZES[size].max_words:
        raise ValueError(
            f"captions of {max_sources} sources may have {listener.caption_words} words, a "
            f"captioner of size {size!r} says {SIZES[size].max_words} at most"
        )
    return listener


def unit_rms(wave_BT: jax.Array) -> jax.Array:
    """Waveforms at an RMS of one, so that gain makes no difference; silence stays silence."""
    rms_B1 = jnp.sqrt(jnp.mean(wave_BT**2, axis=-1, keepdims=True))
    return wave_BT / jnp.maximum(rms_B1, 1e-5)


def network_level(power_BNM: jax.Array) -> jax.Array:
    """What the network sees of mel power where the RMS of the sound is one: about -1.5 to 1.5."""
    return decibels(power_BNM + _FLOOR) / 20


def hear(listener: Listener, wave_BT: jax.Array) -> jax.Array:
    """Waveforms of any gain, float32 [B, T], as the network sees them, [B, N, M]."""
    return network_level(mel_power(unit_rms(wave_BT), listener.mel))


def caption(
    listener: Listener,
    params: Mapping,
    wave_BT: jax.Array | np.ndarray,
    whole: jax.sharding.Sharding | None = None,
) -> tuple[list[str], np.ndarray]:
    """Captions of windows of any gain.

    Args:
        listener: network, spectrogram and words.
        params: of the network.
        wave_BT: float32, of the length that it was trained on.
        whole: sharding of results on the devices, if not where they are made.

    Returns:
        Captions, and tag logits [B, K]. Source: ours; the choice is minimum-Bayes-risk decoding
        (Kumar and Byrne 2004) with F1 of the names as gain.
    """
    listen, rate = _jitted(listener, whole)
    tag_BK, prefix_VBPC = listen(params, wave_BT)
    tag_BK = jax.device_get(tag_BK)
    members_QT = name_sets(min(_PROPOSED, tag_BK.shape[1]), listener.sources)
    top_BT = np.argsort(-tag_BK, axis=1, kind="stable")[:, : members_QT.shape[1]]
    said = [said for _, said in listener.clauses]
    sets = [[[said[k] for k in top_T[row]] for row in members_QT] for top_T in top_BT]
    length, encode = listener.caption_words, listener.vocabulary.encode
    ids_BQL = np.array([[encode(clauses, length) for clauses in rows] for rows in sets])
    rated_BQ = jax.device_get(rate(params, prefix_VBPC, ids_BQL))
    best_B = choose(rated_BQ, np.take_along_axis(tag_BK, top_BT, axis=1), members_QT)
    return [compose(rows[best]) for rows, best in zip(sets, best_B, strict=True)], tag_BK


def name_sets(names: int, most: int) -> np.ndarray:
    """All sets of 1 to `most` out of so many names, as membership, bool [Q, T]."""
    rows = itertools.product((False, True), repeat=names)
    return np.array([row for row in rows if 0 < sum(row) <= most])


def choose(rated_BQ: np.ndarray, odds_BT: np.ndarray, members_QT: np.ndarray) -> np.ndarray:
    """Index [B] of the set of names whose expected F1 is best.

    How likely a set is comes from a product of two experts, the decoder's probability of its
    caption and the tags' odds of its names.

    Args:
        rated_BQ: log probabilities of the captions.
        odds_BT: logits of the tags.
        members_QT: names of each caption.
    """
    log_BQ = rated_BQ + odds_BT @ members_QT.T
    weight_BQ = np.exp(log_BQ - log_BQ.max(axis=1, keepdims=True))
    size_Q = members_QT.sum(1)
    f1_QQ = 2 * (members_QT.astype(int) @ members_QT.T) / (size_Q[:, None] + size_Q[None])
    return np.argmax(weight_BQ @ f1_QQ, axis=1)


@functools.cache
def _jitted(listener: Listener, whole: jax.sharding.Sharding | None) -> tuple[Callable, Callable]:
    """Two functions, jitted once, with the two hearings as V.

    (params, wave_BT) -> mean tags [B, K] and prefixes [V, B, P, C]; and (params, prefix_VBPC,
    ids_BQL) -> mean log probability of captions, [B, Q].
    """
    model, pad = listener.model, listener.vocabulary.PAD

    def listen(params: Mapping, wave_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(wave_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
            return model.apply({"params": params}, hear(listener, wave_BT), method=Captioner.listen)

        exchanged_BT = jnp.roll(wave_BT, wave_BT.shape[-1] // 2, axis=-1)
        tag_VBK, prefix_VBPC = jax.vmap(one)(jnp.stack([wave_BT, exchanged_BT]))
        return tag_VBK.mean(0), prefix_VBPC

    def rate(params: Mapping, prefix_VBPC: jax.Array, ids_BQL: jax.Array) -> jax.Array:
        ids = ids_BQL.reshape(-1, ids_BQL.shape[-1])

        def one(prefix_BPC: jax.Array) -> jax.Array:
            prefix = jnp.repeat(prefix_BPC, ids_BQL.shape[1], axis=0)
            logits = model.apply({"params": params}, prefix, ids[:, :-1], method=Captioner.rate)
            said = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
            return jnp.sum(said * (ids != pad), axis=-1).reshape(ids_BQL.shape[:2])

        return jax.vmap(one)(prefix_VBPC).mean(0)

    return jax.jit(listen, out_shardings=whole), jax.jit(rate, out_shardings=whole)


def init_params(listener: Listener, key: jax.Array, samples: int) -> dict:
    """Random parameters; positions are learned for the frames of a window of so many samples."""
    level_BNM = jnp.zeros((1, listener.mel.frames(samples), listener.mel.bands))
    return listener.model.init(key, level_BNM, jnp.zeros((1, 1), jnp.int32))["params"]


def abstract_params(listener: Listener, window_s: float) -> dict:
    """Shapes of the parameters of a network that hears windows of `window_s` seconds."""
    samples = round(window_s * listener.mel.sample_rate_hz)
    return jax.eval_shape(lambda key: init_params(listener, key, samples), jax.random.key(0))
