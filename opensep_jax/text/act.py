"""Captions from ACT, read from the files that its authors publish.

Their checkpoint has no words: those are all words of AudioCaps' training captions in the order of
first appearance, which `train.csv` of their repository gives.

Source: Mei et al. 2021 (arXiv 2107.09817), github.com/XinhaoMei/ACT.
"""

import csv
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.checkpoint import weights
from opensep_jax.models.act import Act, ActConfig
from opensep_jax.models.convert import convert
from opensep_jax.models.greedy import generate
from opensep_jax.models.pth import read_pth
from opensep_jax.models.tables import ACT_TABLE
from opensep_jax.signal.mel import Mel, decibels, mel_power

MAX_WORDS = 30
_START, _END = "<sos>", "<eos>"
_PUNCTUATION = re.compile('[,.!?;:"]')
_CAPTIONS = "train.csv"


class ActCaptioner:
    """An ACT with its words; a `caption.Backend`.

    Attributes:
        id: Family, size and content hash of the weights.
        sample_rate_hz: 32000.
        window_s: 10 for every published size.
        padding: "zeros".
        traces: How often the network was traced: once per number of windows.
    """

    sample_rate_hz = 32_000
    padding = "zeros"

    def __init__(self, id: str, network: Act, variables: Mapping, words: Sequence[str]) -> None:
        """Takes what `load` has read.

        Args:
            id: See the class.
            network: The network.
            variables: Its parameters and statistics.
            words: The word of each id.
        """
        config = network.config
        self.id, self.traces = id, 0
        self.mel = Mel(self.sample_rate_hz, 1024, 640, config.mel_bands, 0, 16_000)
        self.window_s = config.frames * self.mel.hop_samples / self.sample_rate_hz
        self._words, self._end_id = words, words.index(_END)
        self._variables = jax.device_put(variables)
        nothing_V = jnp.zeros(config.vocab_size, bool)
        continued = functools.partial(
            generate,
            network,
            prompt_L=jnp.array([words.index(_START)], jnp.int32),
            max_new=MAX_WORDS,
            end_id=self._end_id,
            banned_V=nothing_V,
            banned_first_V=nothing_V,
        )

        def apply(variables: Mapping, waves_BT: jax.Array) -> jax.Array:
            self.traces += 1
            with jax.default_matmul_precision("highest"):
                level_BNF = decibels(mel_power(waves_BT, self.mel), top_db=80.0)[:, :-1]
                return continued(variables, level_BNF)

        self._apply = jax.jit(apply)

    def caption_windows(self, waves_BT: np.ndarray) -> list[str]:
        """Captions windows.

        Args:
            waves_BT: float32 [B, window], mono in [-1, 1]; compiled once per B.

        Returns:
            A text per window, lower case without punctuation; it may be empty.
        """
        ids_BL = np.asarray(self._apply(self._variables, waves_BT))
        return [" ".join(self._words[i] for i in ids_L if i != self._end_id) for ids_L in ids_BL]


def vocabulary(captions: Iterable[str]) -> list[str]:
    """Words of training captions by id, as the published code numbers them.

    Args:
        captions: In the order of the authors' list.

    Returns:
        Distinct lower-case words in the order of first appearance, with "<sos>" first and "<eos>"
        behind the first caption.
    """
    words: dict[str, None] = {}
    for caption in captions:
        text = _PUNCTUATION.sub(" ", caption.lower())
        words |= dict.fromkeys((_START, *text.split(), _END))
    return list(words)


def load(path: str) -> ActCaptioner:
    """Loads an ACT.

    Args:
        path: The `.pth` file; `train.csv` of the authors' repository (its column `caption` is what
            they trained with) lies beside it.

    Returns:
        The captioner, its parameters on the default device.

    Raises:
        ValueError: A file is missing, damaged, or of another model, or the captions do not give as
            many words as the checkpoint has.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"act:{path}: no such file; give the path of a checkpoint of ACT")
    tensors = read_pth(file, "model")
    try:
        config = ActConfig.from_tensors({name: array.shape for name, array in tensors.items()})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    words = _words(file.parent / _CAPTIONS)
    if len(words) != config.vocab_size:
        raise ValueError(
            f"{file} has {config.vocab_size} words, but the captions of "
            f"{file.parent / _CAPTIONS} give {len(words)}; it must be the list that the "
            "checkpoint was trained with"
        )
    network = Act(config)
    level = jax.ShapeDtypeStruct((1, config.frames, config.mel_bands), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    abstract = jax.eval_shape(network.init, jax.random.key(0), level, ids)
    variables = convert(tensors, ACT_TABLE, abstract)
    captioner_id = f"act-{config.decoder_layers}-{weights.content_hash([file])[:16]}"
    return ActCaptioner(captioner_id, network, variables, words)


def _words(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return vocabulary(row["caption"] for row in csv.DictReader(stream))
    except FileNotFoundError:
        raise ValueError(
            f"{file} is missing: an ACT checkpoint has no words; copy data/csv_files/train.csv of "
            "github.com/XinhaoMei/ACT there"
        ) from None
    except KeyError:
        raise ValueError(f"{file} has no column 'caption'") from None
