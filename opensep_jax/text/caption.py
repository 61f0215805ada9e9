"""Captions of recordings: one interface, whatever network listens.

captioner = load_captioner("whisper:MU-NLPC/whisper-large-v2-audio-captioning")
captioner.caption([wave_CT, other_CT], 44100)  # a text per recording

A network hears windows of one length. A recording's windows are chosen here, mixed to one channel,
resampled and padded; what is said of them becomes one text, a sentence for each distinct caption.
"""

import importlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from opensep_jax.signal.audio import audio_info, read_parts
from opensep_jax.signal.resampling import resample

POLICIES = ("multi", "start", "centre", "seeded")  # which windows of a long recording are heard
_BACKENDS = {  # modules with `load(argument)`, by the name before the colon
    "clapcap": "opensep_jax.text.clapcap",
    "whisper": "opensep_jax.text.whisper",
    "act": "opensep_jax.text.act",
    "demo": "opensep_jax.text.demo_captioner",
}
_SILENCE = 1e-4  # of full scale, -80 dB: above the dither of 16-bit files


class Backend(Protocol):
    """A network that captions windows of one length.

    It may have `resample(samples_CT, from_hz, to_hz)` besides, the filter it was trained behind.

    Attributes:
        id: Family and content hash of the weights.
        sample_rate_hz: Rate of the windows.
        window_s: Length of the windows, seconds.
        padding: What follows a recording that is shorter: "zeros", or "repeat" for itself again.
    """

    id: str
    sample_rate_hz: int
    window_s: float
    padding: str

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        """Captions float32 [B, window], mono in [-1, 1]; compiled once per B."""


class Captioner:
    """Listens to recordings with a network.

    A recording's caption depends on nothing but the recording: the network is always given the
    same number of windows, from whichever recordings they come.

    Attributes:
        id: The network's.
        policy: A name of `POLICIES`. A long recording is heard at its start, in its centre, at a
            place drawn from the seed and its content, or (`multi`) in windows all over it.
        max_windows: Most windows of a recording under `multi`; they lie evenly spread, from the
            first sample to the last, with gaps where the recording is longer than all of them.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        policy: str = "multi",
        max_windows: int = 8,
        seed: int = 0,
        batch: int | None = None,
    ) -> None:
        """Takes a network.

        Args:
            backend: The network.
            policy: See the class.
            max_windows: See the class.
            seed: Of policy `seeded`.
            batch: Windows per call; default 1 on CPU, 8 elsewhere.

        Raises:
            ValueError: The policy is unknown, or a count is not positive.
        """
        if policy not in POLICIES:
            raise ValueError(f"policy={policy!r} is not known; known are {', '.join(POLICIES)}")
        if max_windows < 1 or (batch is not None and batch < 1):
            raise ValueError(f"max_windows={max_windows} and batch={batch} must be positive")
        self.id, self.policy, self.max_windows = backend.id, policy, max_windows
        self._backend, self._seed = backend, seed
        self._resample = getattr(backend, "resample", resample)
        self._batch = batch or (1 if jax.default_backend() == "cpu" else 8)

    def hear(self, wave: np.ndarray, sample_rate_hz: int) -> list[np.ndarray]:
        """Cuts the windows that will be captioned out of a recording.

        Args:
            wave: Float [C, T] or [T], T >= 1, any length. What exceeds full scale is scaled down;
                channels are averaged.
            sample_rate_hz: Of the recording.

        Returns:
            Float32 [window] each, in the order of time; none that is silent (80 dB below full
            scale): of silence a network would only invent something.

        Raises:
            ValueError: The recording is not as above, or what is heard of it is NaN or infinite.
        """
        wave_CT = _checked(wave)
        size = math.ceil(self._backend.window_s * sample_rate_hz)
        starts = self._starts(wave_CT.shape[1], size, lambda: wave_CT[:, :size])
        return self._windows((wave_CT[:, start : start + size] for start in starts), sample_rate_hz)

    def hear_file(self, path: str | os.PathLike) -> list[np.ndarray]:
        """`hear` of an audio file of any length, of which only the windows are kept in memory.

        Raises:
            AudioError: The file cannot be read as far as it is heard.
        """
        info = audio_info(path)
        size = math.ceil(self._backend.window_s * info.sample_rate_hz)
        starts = self._starts(info.frames, size, lambda: read_parts(path, [0], size)[0])
        parts = (part_CT for part_CT in read_parts(path, starts, size) if part_CT.size)
        return self._windows(parts, info.sample_rate_hz)

    def tell(self, heard: Sequence[list[np.ndarray]]) -> list[str]:
        """Captions recordings, a batch of windows at a time.

        Args:
            heard: What `hear` returned for each.

        Returns:
            A text per recording: its caption, or where several windows have different ones
            "A dog barks. Rain falls." in the order of time; empty where nothing was heard, or
            nothing with a letter or digit was said of it.
        """
        said: list[list[str]] = [[] for _ in heard]
        windows = [(index, window) for index, part in enumerate(heard) for window in part]
        for start in range(0, len(windows), self._batch):
            part = windows[start : start + self._batch]
            # A copy of a real one in place of a missing one: silence would be decoded longest.
            rows = [window_T for _, window_T in part] + [part[-1][1]] * (self._batch - len(part))
            captions = self._backend.caption_windows(np.stack(rows))
            for (index, _), caption in zip(part, captions, strict=False):
                said[index].append(caption)
        return [join_captions(captions) for captions in said]

    def caption(self, waves: Sequence[np.ndarray], sample_rate_hz: int) -> list[str]:
        """Captions recordings of one rate: `hear` and `tell`."""
        return self.tell([self.hear(wave, sample_rate_hz) for wave in waves])

    def _starts(self, samples: int, size: int, head: Callable[[], np.ndarray]) -> list[int]:
        """First samples of the windows of `size` samples that are heard; `head` is the first."""
        last = max(0, samples - size)
        if self.policy == "multi":
            count = min(-(-samples // size), self.max_windows)
            return [int(start) for start in np.linspace(0, last, max(1, count))]
        if self.policy == "seeded":
            head_CT = np.ascontiguousarray(head(), np.float32)
            rng = np.random.default_rng((self._seed, zlib.crc32(head_CT)))
            return [int(rng.integers(last + 1))]
        return [last // 2 if self.policy == "centre" else 0]

    def _windows(self, parts: Iterable[np.ndarray], rate_hz: int) -> list[np.ndarray]:
        """What is not silent of parts [C, n], as the network wants it."""
        mono = (_mono(part_CT) for part_CT in parts)
        return [self._fit(mono_T, rate_hz) for mono_T in mono if np.abs(mono_T).max() >= _SILENCE]

    def _fit(self, mono_T: np.ndarray, rate_hz: int) -> np.ndarray:
        """At the network's rate and in its length."""
        samples = round(self._backend.window_s * self._backend.sample_rate_hz)
        mono_T = self._resample(mono_T[None], rate_hz, self._backend.sample_rate_hz)[0, :samples]
        if self._backend.padding == "repeat":
            return np.resize(mono_T, samples)
        return np.pad(mono_T, (0, samples - len(mono_T)))


class WrittenCaptions:
    """Captions that are known already, from a `.jsonl` file.

    Attributes:
        id: "file" and the checksum of the captions.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Reads the file.

        Args:
            path: Lines of {"input": path of a recording, "caption": text}; other keys are ignored,
                so a list for `infer` serves. Relative paths are also taken from the file's folder.

        Raises:
            ValueError: The file cannot be read, a line is something else, or a recording has two
                different captions.
        """
        self._path = Path(path)
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: captions cannot be read: {error.strerror}") from error
        self.id = f"file-{zlib.crc32(content):08x}"
        self._by_path: dict[str, str] = {}
        self._by_name: dict[str, set[str]] = {}
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                self._add(line, f"{path}:{number}")

    def hear_file(self, path: str | os.PathLike) -> str:
        """Looks a caption up.

        Args:
            path: Of the recording, not opened. It is found as written, from the current folder,
                from the file's folder, and last by its name alone if that has one caption.

        Returns:
            Its caption.

        Raises:
            ValueError: The recording is not in the file, or only its name is and more than once.
        """
        return self._look_up(os.fspath(path))

    def tell(self, heard: Sequence[str]) -> list[str]:
        """The captions that `hear` has found."""
        return list(heard)

    def _add(self, line: bytes, place: str) -> None:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: not valid JSON: {error}") from error
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in ("input", "caption")
        ):
            raise ValueError(f'{place}: not an object with texts "input" and "caption"')
        path, caption = os.fspath(row["input"]), row["caption"].strip()
        caption = caption if _has_words(caption) else ""
        for known in {os.path.abspath(path), os.path.abspath(self._path.parent / path)}:
            if self._by_path.setdefault(known, caption) != caption:
                raise ValueError(f"{place}: {path} has another caption above")
        self._by_name.setdefault(os.path.basename(path), set()).add(caption)

    def _look_up(self, key: str) -> str:
        if (caption := self._by_path.get(os.path.abspath(key))) is not None:
            return caption
        named = self._by_name.get(os.path.basename(key), set())
        if len(named) != 1:
            found = f"{len(named)} captions of that name" if named else "no caption"
            raise ValueError(f'{self._path}: {found} for {key}; add a line with it as "input"')
        return next(iter(named))


def load_captioner(
    name: str,
    *,
    policy: str = "multi",
    max_windows: int = 8,
    seed: int = 0,
    batch: int | None = None,
) -> Captioner | WrittenCaptions:
    """Loads a captioner by name; both kinds have `id`, `hear_file` and `tell`.

    Args:
        name: "demo" (small, shipped), "clapcap" or "clapcap:<path>", "whisper:<hub id or folder>",
            "act:<path>", or "file:<captions.jsonl>".
        policy: See `Captioner`.
        max_windows: See `Captioner`.
        seed: Of policy `seeded`.
        batch: Windows per call; default 1 on CPU, 8 elsewhere.

    Returns:
        The captioner.

    Raises:
        ValueError: The name is unknown, or its files are missing or damaged.
        WeightsError: Its weights could not be downloaded.
    """
    kind, _, argument = name.partition(":")
    if kind == "file":
        return WrittenCaptions(argument)
    if kind not in _BACKENDS:
        raise ValueError(
            f"captioner {name!r} is not known; known are demo, demo:<folder>, clapcap, "
            "whisper:<hub id or folder>, act:<path>, file:<captions.jsonl>"
        )
    backend = importlib.import_module(_BACKENDS[kind]).load(argument)
    return Captioner(backend, policy=policy, max_windows=max_windows, seed=seed, batch=batch)


def join_captions(captions: Sequence[str]) -> str:
    """One text of the captions of a recording's windows; see `Captioner.caption`."""
    distinct: dict[str, str] = {}
    for caption in captions:
        caption = " ".join(caption.split())
        if _has_words(caption):
            distinct.setdefault(caption.casefold().rstrip(" ."), caption)
    if len(distinct) <= 1:
        return "".join(distinct.values())
    sentences = [caption.rstrip(" .") for caption in distinct.values()]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _has_words(caption: str) -> bool:
    """Whether a caption says more than "???" and the like."""
    return any(map(str.isalnum, caption))


def _checked(wave: np.ndarray) -> np.ndarray:
    wave = np.asarray(wave)
    wave_CT = wave[None] if wave.ndim == 1 else wave
    if not np.issubdtype(wave.dtype, np.floating) or wave_CT.ndim != 2 or not wave_CT.size:
        raise ValueError(f"need float samples [C, T] or [T], T >= 1, got {wave.dtype} {wave.shape}")
    return wave_CT


def _mono(window_CT: np.ndarray) -> np.ndarray:
    """Mean of the channels, float32 [T] within full scale."""
    peak_C = np.abs(window_CT).max(1)
    if not np.isfinite(peak_C).all():
        raise ValueError("samples are NaN or infinite")
    window_CT = (window_CT / max(1.0, peak_C.max())).astype(np.float32)
    mono_T = window_CT.mean(0)
    # Channels of opposite sign cancel: then the loudest one is heard.
    cancelled = np.abs(mono_T).max() < _SILENCE
    return window_CT[peak_C.argmax()] if cancelled else mono_T
