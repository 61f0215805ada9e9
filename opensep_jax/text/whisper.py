"""Captions from Whisper: fine-tuned for captioning, or as it is.

A fine-tuned Whisper continues a prompt that ends with the style of the caption. The published one
transcribes speech, and what it says of other sounds are its annotations, such as "(bell ringing)",
which are given here without the brackets.

Source: Kadlcik et al. 2023 (arXiv 2305.09690), models MU-NLPC/whisper-*-audio-captioning.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.checkpoint import weights
from opensep_jax.models.convert import convert
from opensep_jax.models.greedy import generate
from opensep_jax.models.pth import read_pth
from opensep_jax.models.safetensors import read_safetensors, safetensors_files
from opensep_jax.models.tables import WHISPER_TABLE
from opensep_jax.models.whisper import Whisper, WhisperConfig
from opensep_jax.signal.mel import Mel, decibels, mel_power
from opensep_jax.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import tokenizers

# What the captioners were trained with last; they also know "audiocaps > caption: ".
STYLE = "clotho > caption: "
MAX_TOKENS = 100  # prompt and caption, as on the models' cards
_FINE_TUNED = "WhisperForAudioCaptioning"  # architecture in the config.json of a captioner
_START = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
_END = "<|endoftext|>"


class WhisperCaptioner:
    """A Whisper with its tokenizer; a `caption.Backend`.

    Attributes:
        id: Family, size and content hash of the weights.
        sample_rate_hz: 16000.
        window_s: 30 for every published size.
        padding: "zeros".
        traces: How often the network was traced: once per number of windows.
    """

    sample_rate_hz = 16_000
    padding = "zeros"

    def __init__(
        self,
        id: str,
        network: Whisper,
        params: Mapping,
        tokenizer: "tokenizers.Tokenizer",
        *,
        style: str,
        suppressed: Mapping[str, list[int]],
    ) -> None:
        """Takes what `load` has read.

        Args:
            id: See the class.
            network: The network.
            params: Its parameters.
            tokenizer: The network's.
            style: End of the prompt; empty for a Whisper that was not fine-tuned.
            suppressed: `suppress_tokens` and `begin_suppress_tokens` of generation_config.json.

        Raises:
            ValueError: The tokenizer does not fit.
        """
        config = network.config
        self.id, self.traces = id, 0
        self.mel = Mel(self.sample_rate_hz, 400, 160, config.mel_bands, 0, 8000)
        self.window_s = 2 * config.encoder_positions * self.mel.hop_samples / self.sample_rate_hz
        self._tokenizer, self._styled = tokenizer, bool(style)
        self._end_id = _token_id(tokenizer, _END)
        self._params = jax.device_put(params)
        prompt = _prompt(tokenizer, style, config.vocab_size)
        max_new = min(MAX_TOKENS, config.decoder_positions) - len(prompt)
        # Whisper's list holds the brackets of its annotations: without fine-tuning they are all
        # that it says of sounds, so only what may not come first is kept out.
        banned = suppressed.get("suppress_tokens") or [] if style else []
        banned_first = suppressed.get("begin_suppress_tokens") or []
        continued = functools.partial(
            generate,
            network,
            prompt_L=jnp.array(prompt, jnp.int32),
            max_new=max_new,
            end_id=self._end_id,
            banned_V=jnp.isin(jnp.arange(config.vocab_size), jnp.array(banned, jnp.int32)),
            banned_first_V=jnp.isin(
                jnp.arange(config.vocab_size), jnp.array(banned_first, jnp.int32)
            ),
        )

        def apply(params: Mapping, waves_BT: jax.Array) -> jax.Array:
            self.traces += 1
            with jax.default_matmul_precision("highest"):
                return continued({"params": params}, features(waves_BT, self.mel))

        self._apply = jax.jit(apply)

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        """Captions windows.

        Args:
            waves_BT: float32 [B, window], mono in [-1, 1]; compiled once per B.

        Returns:
            A text per window, without prompt, special tokens and the brackets of annotations; it
            may be empty.
        """
        ids_BL = np.asarray(self._apply(self._params, waves_BT))
        kept = [[int(i) for i in ids_L if i != self._end_id] for ids_L in ids_BL]
        texts = self._tokenizer.decode_batch(kept)
        return [(text if self._styled else _unbracketed(text)).strip() for text in texts]


def features(waves_BT: jax.Array, mel: Mel) -> jax.Array:
    """Whisper's spectrogram, about [-1, 1.5], equal to transformers' `WhisperFeatureExtractor`.

    Args:
        waves_BT: float32 [B, T], T a multiple of the hop.
        mel: Its settings.

    Returns:
        float32 [B, T / hop, F]. Nothing lies below the loudest cell of a window by more than 80 dB.
    """
    level_BNF = decibels(mel_power(waves_BT, mel)[:, :-1], top_db=80.0)
    return level_BNF / 40 + 1


def load(name: str, style: str | None = None) -> WhisperCaptioner:
    """Loads a Whisper.

    Args:
        name: Weights by name (see `checkpoint.weights.resolve`): a hub id such as
            "MU-NLPC/whisper-large-v2-audio-captioning", a local folder, or "whisper-base".
        style: End of the prompt; default `STYLE` if the weights were fine-tuned for captions by
            their config.json, else empty.

    Returns:
        The captioner, its parameters on the default device.

    Raises:
        ValueError: The name is unknown, or the folder holds another model or lacks a file.
        WeightsError: The weights could not be downloaded.
    """
    folder = weights.resolve(name)
    hf_config = json.loads((folder / "config.json").read_text("utf-8"))
    config = WhisperConfig.from_hf(hf_config)
    network = Whisper(config)
    mel_shape = (1, 2 * config.encoder_positions, config.mel_bands)
    inputs = jax.ShapeDtypeStruct(mel_shape, jnp.float32), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    abstract = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    tensors, files = _tensors(folder)
    params = convert(tensors, WHISPER_TABLE, abstract)
    if style is None:
        style = STYLE if _FINE_TUNED in (hf_config.get("architectures") or []) else ""
    layers = f"{config.encoder_layers}+{config.decoder_layers}"
    captioner_id = f"whisper-{layers}x{config.width}-{weights.content_hash(files)[:16]}"
    return WhisperCaptioner(
        captioner_id,
        network,
        params,
        _tokenizer(folder),
        style=style,
        suppressed=_suppressed(folder, hf_config),
    )


def _unbracketed(text: str) -> str:
    """Annotations as plain words; "[BLANK_AUDIO]" says that there is nothing to hear."""
    return re.sub(r"\[BLANK_AUDIO\]|[\[\]()]", "", text)


def _tensors(folder: Path) -> tuple[Mapping[str, np.ndarray], list[Path]]:
    """Published names to arrays, and the files they are in; safetensors if there are any."""
    if any(folder.glob("*.safetensors")):
        return read_safetensors(folder), safetensors_files(folder)
    files = sorted(folder.glob("pytorch_model*.bin"))
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= read_pth(file)
    return tensors, files


def _suppressed(folder: Path, hf_config: Mapping) -> Mapping[str, list[int]]:
    file = folder / "generation_config.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else hf_config


def _tokenizer(folder: Path) -> "tokenizers.Tokenizer":
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(
            f"{folder} has no tokenizer: copy tokenizer.json, or vocab.json and merges.txt, of any "
            "multilingual Whisper into it"
        )
    return load_tokenizer(folder)


def _token_id(tokenizer: "tokenizers.Tokenizer", token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no {token}; it is not that of a multilingual Whisper")
    return number


def _prompt(tokenizer: "tokenizers.Tokenizer", style: str, vocab_size: int) -> list[int]:
    """The forced beginning of every caption."""
    styled = tokenizer.encode(style, add_special_tokens=False).ids
    if tokenizer.decode(styled) != style:
        raise ValueError(f"the tokenizer writes {tokenizer.decode(styled)!r} for {style!r}")
    prompt = [_token_id(tokenizer, token) for token in _START] + styled
    if tokenizer.get_vocab_size() > vocab_size or max(prompt) >= vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the network {vocab_size}"
        )
    return prompt
