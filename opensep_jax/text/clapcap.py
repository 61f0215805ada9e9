"""Captions from ms-CLAP's captioner ("clapcap"), the one the paper uses.

Source: microsoft/CLAP, `CLAPWrapper.generate_caption` (msclap 1.3.4). Other than there a caption is
a function of the window: no random crop is taken here.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.checkpoint.weights import WeightsError
from opensep_jax.models import tables
from opensep_jax.models.clapcap import CLAPCAP_CONFIGS, ClapcapNetwork, search_captions
from opensep_jax.models.convert import convert
from opensep_jax.models.pth import read_pth
from opensep_jax.models.safetensors import read_safetensors
from opensep_jax.signal.mel import Mel, decibels, mel_power
from opensep_jax.signal.sinc import resample_sinc

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

# The filters are made for 32 kHz and the sound comes at 44.1 kHz: as published.
MEL = Mel(
    sample_rate_hz=32_000,
    n_fft_samples=1024,
    hop_samples=320,
    bands=64,
    low_hz=50,
    high_hz=14_000,
)
MAX_TOKENS = 67  # of a caption, stop word included
# The published stop word: a lone space, which is how GPT-2 begins to write " <|endoftext|>".
STOP = "\u0120"

HUB_WEIGHTS = ("microsoft/msclap", "clapcap_weights_2023.pth")
HUB_VOCABULARY = "openai-community/gpt2"
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


class Clapcap:
    """The captioner with its tokenizer; a `caption.Backend`.

    Attributes:
        id: Family and content hash of the weights.
        sample_rate_hz: 44100.
        window_s: 7.
        padding: "repeat": a shorter sound is heard again until the window is full.
        traces: How often the network was traced: once per number of windows.
    """

    sample_rate_hz = 44_100
    window_s = 7.0
    padding = "repeat"
    # As in training. A better filter is no better for a network that never heard one.
    resample = staticmethod(resample_sinc)

    def __init__(
        self,
        id: str,
        network: ClapcapNetwork,
        variables: Mapping,
        filters_FM: np.ndarray,
        tokenizer: "tokenizers.Tokenizer",
        *,
        beams: int = 5,
        temperature: float = 1.0,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """Takes what `load` has read.

        Args:
            id: See the class.
            network: The network.
            variables: Its collections `params` and `batch_stats`.
            filters_FM: float32 [513, 64], mel filters.
            tokenizer: The decoder's.
            beams: Beams of the search; 1 is greedy.
            temperature: Divides logits; more than 0.
            max_tokens: Longest caption, stop word included.

        Raises:
            ValueError: A setting or the tokenizer does not fit.
        """
        decoder = network.config.decoder
        if beams < 1 or temperature <= 0:
            raise ValueError(f"beams={beams} must be at least 1 and temperature={temperature} > 0")
        if tokenizer.get_vocab_size() != decoder.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.get_vocab_size()} tokens and the captioner "
                f"{decoder.vocab_size}; it needs the tokenizer of gpt2"
            )
        stop_id = tokenizer.token_to_id(STOP)
        if stop_id is None:
            raise ValueError(f"the tokenizer lacks {STOP!r}; it is not that of gpt2")
        self.id, self.traces = id, 0
        self._tokenizer = tokenizer
        self._constants = jax.device_put((variables, filters_FM))
        self._samples = round(self.window_s * self.sample_rate_hz)

        def apply(constants: tuple, waves_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
            self.traces += 1
            variables, filters_FM = constants
            with jax.default_matmul_precision("highest"):
                level_BNM = decibels(mel_power(waves_BT, MEL, filters_FM))
                prefix_BPC, _ = network.apply(variables, level_BNM, method="prefix")
                found = search_captions(
                    network,
                    variables,
                    prefix_BPC,
                    beams=beams,
                    max_tokens=max_tokens,
                    stop_id=stop_id,
                    temperature=temperature,
                )
            return found.tokens_BKL[:, 0], found.lengths_BK[:, 0]

        self._apply = jax.jit(apply)

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        """Captions windows.

        Args:
            waves_BT: float32 [B, window], mono in [-1, 1]; compiled once per B.

        Returns:
            A text per window: its first letter is a capital and all others are small, as published.

        Raises:
            ValueError: The windows have another length.
        """
        if waves_BT.ndim != 2 or waves_BT.shape[1] != self._samples:
            raise ValueError(f"need windows [B, {self._samples}], got shape {waves_BT.shape}")
        tokens_BL, lengths_B = jax.device_get(self._apply(self._constants, waves_BT))
        rows = [
            tokens_L[:length].tolist()
            for tokens_L, length in zip(tokens_BL, lengths_B, strict=True)
        ]
        texts = self._tokenizer.decode_batch(rows, skip_special_tokens=False)
        return [text.capitalize().strip() for text in texts]


def load(
    name: str = "",
    vocabulary: str = "",
    *,
    size: str = "clapcap",
    beams: int = 5,
    temperature: float = 1.0,
    max_tokens: int = MAX_TOKENS,
) -> Clapcap:
    """Loads the captioner.

    Args:
        name: The published `clapcap_weights_2023.pth` or the same tensors as safetensors; or a
            folder that holds the former. Empty: from the model hub.
        vocabulary: Folder with the tokenizer of gpt2: `tokenizer.json`, or `vocab.json` and
            `merges.txt`. Empty: the folder of the weights if it has one, else from the model hub.
        size: A name of `CLAPCAP_CONFIGS`.
        beams: Beams of the search; 1 is greedy.
        temperature: Divides logits; more than 0. The published example uses 0.01.
        max_tokens: Longest caption, stop word included.

    Returns:
        The captioner, its parameters on the default device.

    Raises:
        ValueError: A file is missing, damaged or another model's.
        WeightsError: A file could not be downloaded.
    """
    file = _weights_file(name)
    tensors = read_safetensors(file) if file.suffix == ".safetensors" else read_pth(file, "model")
    network = ClapcapNetwork(CLAPCAP_CONFIGS[size])
    encoder = network.config.encoder
    level = jax.ShapeDtypeStruct((1, encoder.max_frames, encoder.bands), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    abstract = jax.eval_shape(network.init, jax.random.key(0), level, ids)
    try:
        variables = convert(tensors, tables.CLAPCAP_TABLE, abstract)
        filters_FM = _filters(tensors)
    except ValueError as error:
        raise ValueError(f"{file} is not the captioner: {error}") from error
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Clapcap(
        f"clapcap-{digest[:16]}",
        network,
        variables,
        filters_FM,
        _load_tokenizer(vocabulary, file.parent),
        beams=beams,
        temperature=temperature,
        max_tokens=max_tokens,
    )


def _filters(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The checkpoint's mel filters; and a check of what is stored twice."""
    name, head, words = tables.CLAPCAP_MEL_FILTERS, tables.CLAPCAP_HEAD, tables.CLAPCAP_WORDS
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    if head in tensors and not np.array_equal(tensors[head], tensors[words]):
        raise ValueError(f"{head} and {words} differ, and the output layer is tied")
    filters_FM = np.array(tensors[name], np.float32)
    if filters_FM.shape != MEL.filters_FM.shape:
        raise ValueError(f"{name} is {filters_FM.shape} where {MEL.filters_FM.shape} is wanted")
    if not np.allclose(filters_FM, MEL.filters_FM, atol=1e-6):
        logger.warning("%s differs from the published filters; the checkpoint's are used", name)
    return filters_FM


def _weights_file(name: str) -> Path:
    if not name:
        return _from_hub(*HUB_WEIGHTS, "pass the path of the file")
    path = Path(name).expanduser()
    file = path / HUB_WEIGHTS[1] if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist; it should be {HUB_WEIGHTS[1]} of {HUB_WEIGHTS[0]} on the "
            "model hub"
        )
    return file


def _load_tokenizer(vocabulary: str, beside: Path) -> "tokenizers.Tokenizer":
    """The tokenizer of gpt2 in a folder; where none is named, beside the weights or on the hub."""
    import tokenizers  # lazily: importing this module stays cheap

    folder = Path(vocabulary).expanduser() if vocabulary else beside
    for names in _VOCABULARIES:
        if all((folder / name).is_file() for name in names):
            files = [str(folder / name) for name in names]
            if names == ("tokenizer.json",):
                return tokenizers.Tokenizer.from_file(*files)
            return tokenizers.ByteLevelBPETokenizer.from_file(*files)
    remedy = "put tokenizer.json, or vocab.json and merges.txt, of gpt2"
    if vocabulary:
        raise ValueError(f"{folder} holds no vocabulary: {remedy} there")
    file = _from_hub(HUB_VOCABULARY, "tokenizer.json", f"{remedy} beside the weights in {beside}")
    return tokenizers.Tokenizer.from_file(str(file))


def _from_hub(hub_id: str, name: str, remedy: str) -> Path:
    import huggingface_hub  # only needed here, and slow to import

    try:
        return Path(huggingface_hub.hf_hub_download(hub_id, name))
    except Exception as error:  # network, authorisation and cache errors share no base class
        reason = (str(error).strip().splitlines() or ["no details"])[0]
        raise WeightsError(
            f"{name} of {hub_id!r} could not be fetched from the model hub "
            f"({type(error).__name__}: {reason}). Offline, {remedy}."
        ) from error
