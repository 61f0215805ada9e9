"""Captions of recordings: one interface, whatever network listens.

captioner = load_captioner("whisper:MU-NLPC/whisper-large-v2-audio-captioning")
captioner.caption([wave_CT, other_CT], 44100)  # a text per recording

A network hears windows of one length. A recording's windows are chosen here, mixed to one channel,
resampled and padded; what is said of them becomes one text, a sentence for each distinct caption.
"""

import importlib
import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from opensep_jax.signal.audio import resample

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

    def caption(
        self, waves: Sequence[np.ndarray], sample_rate_hz: int, keys: Sequence[str] = ()
    ) -> list[str]:
        """Captions recordings.

        Only the chosen windows are copied, a batch at a time.

        Args:
            waves: Float [C, T] or [T] each, T >= 1, any length. What exceeds full scale is scaled
                down; channels are averaged.
            sample_rate_hz: Of all of them.
            keys: Not used; see `WrittenCaptions`.

        Returns:
            A text per recording: its caption, or where several windows have different ones
            "A dog barks. Rain falls." in the order of time. Empty where no window is louder than
            80 dB below full scale: of silence a network would only invent something.

        Raises:
            ValueError: A recording is not as above, or what is heard of it is NaN or infinite.
        """
        said: list[list[str]] = [[] for _ in waves]
        windows = self._windows(waves, sample_rate_hz)
        while part := list(itertools.islice(windows, self._batch)):
            # A copy of a real one in place of a missing one: silence would be decoded longest.
            rows = [window_T for _, window_T in part] + [part[-1][1]] * (self._batch - len(part))
            captions = self._backend.caption_windows(np.stack(rows))
            for (index, _), caption in zip(part, captions, strict=False):
                said[index].append(caption)
        return [join_captions(captions) for captions in said]

    def _windows(
        self, waves: Sequence[np.ndarray], rate_hz: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Index of the recording and float32 [window] of each window that is not silent."""
        for index, wave in enumerate(waves):
            wave_CT = _checked(wave, index)
            size = math.ceil(self._backend.window_s * rate_hz)
            for start in self._starts(wave_CT, size):
                mono_T = _mono(wave_CT[:, start : start + size], index)
                if np.abs(mono_T).max() >= _SILENCE:
                    yield index, self._fit(mono_T, rate_hz)

    def _starts(self, wave_CT: np.ndarray, size: int) -> list[int]:
        """First samples of the windows of `size` samples that are heard."""
        last = max(0, wave_CT.shape[1] - size)
        if self.policy == "multi":
            count = min(-(-wave_CT.shape[1] // size), self.max_windows)
            return [int(start) for start in np.linspace(0, last, count)]
        if self.policy == "seeded":
            head_CT = np.ascontiguousarray(wave_CT[:, :size], np.float32)
            rng = np.random.default_rng((self._seed, zlib.crc32(head_CT)))
            return [int(rng.integers(last + 1))]
        return [last // 2 if self.policy == "centre" else 0]

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

    def caption(
        self, waves: Sequence[np.ndarray], sample_rate_hz: int, keys: Sequence[str] = ()
    ) -> list[str]:
        """Looks captions up.

        Args:
            waves: Not listened to.
            sample_rate_hz: Not used.
            keys: The path of each recording. A path is found as written, from the current folder,
                from the file's folder, and last by its name alone if that has one caption.

        Returns:
            A text per recording.

        Raises:
            ValueError: A recording is not in the file, or only its name is and more than once.
        """
        if len(keys) != len(waves):
            raise ValueError(f"{self._path}: {len(keys)} paths for {len(waves)} recordings")
        return [self._look_up(key) for key in keys]

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
    """Loads a captioner by name; both kinds have `id` and `caption(waves, sample_rate_hz, keys)`.

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
        known = "demo, clapcap, whisper:<hub id or folder>, act:<path>, file:<captions.jsonl>"
        raise ValueError(f"captioner {name!r} is not known; known are {known}")
    backend = importlib.import_module(_BACKENDS[kind]).load(argument)
    return Captioner(backend, policy=policy, max_windows=max_windows, seed=seed, batch=batch)


def join_captions(captions: Sequence[str]) -> str:
    """One text of the captions of a recording's windows; see `Captioner.caption`."""
    distinct: dict[str, str] = {}
    for caption in captions:
        caption = " ".join(caption.split())
        if caption.strip(" ."):
            distinct.setdefault(caption.casefold().rstrip(" ."), caption)
    if len(distinct) <= 1:
        return "".join(distinct.values())
    sentences = [caption.rstrip(" .") for caption in distinct.values()]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _checked(wave: np.ndarray, index: int) -> np.ndarray:
    wave = np.asarray(wave)
    wave_CT = wave[None] if wave.ndim == 1 else wave
    if not np.issubdtype(wave.dtype, np.floating) or wave_CT.ndim != 2 or not wave_CT.size:
        raise ValueError(
            f"recording {index}: need float samples [C, T] or [T], T >= 1, "
            f"got {wave.dtype} {wave.shape}"
        )
    return wave_CT


def _mono(window_CT: np.ndarray, index: int) -> np.ndarray:
    """Mean of the channels, float32 [T] within full scale."""
    peak_C = np.abs(window_CT).max(1)
    if not np.isfinite(peak_C).all():
        raise ValueError(f"recording {index}: samples are NaN or infinite")
    window_CT = (window_CT / max(1.0, peak_C.max())).astype(np.float32)
    mono_T = window_CT.mean(0)
    # Channels of opposite sign cancel: then the loudest one is heard.
    cancelled = np.abs(mono_T).max() < _SILENCE
    return window_CT[peak_C.argmax()] if cancelled else mono_T
