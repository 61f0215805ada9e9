"""Prompts to token states: what the separator is conditioned on.

A prompt's states are a function of the prompt alone: it is padded to a length that depends on its
own number of tokens, in a batch of constant size, so neither order nor company changes a bit.
"""

import collections
import json
import logging
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.checkpoint import weights
from opensep_jax.models.convert import convert
from opensep_jax.models.roberta import Roberta, RobertaConfig
from opensep_jax.models.safetensors import read_safetensors, safetensors_files
from opensep_jax.models.tables import ROBERTA_TABLE
from opensep_jax.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

BATCH = 16  # prompts per call of the network
BUCKETS = (16, 32, 64, 128, 256, 512)  # padded lengths, tokens
_REMEMBERED = 256  # prompts whose states are kept: the same sources are asked for again and again
# Where a property ends; a full stop counts at a word's end only, so that "2.5 kHz" stays whole.
_BOUNDARY = re.compile(r", |;|\.(?=\s|$)")


class TextEncoder:
    """A pretrained text network with its tokenizer.

    Attributes:
        id: Family, size and content hash of the weights, such as `bert-6x384-53aa51172d142c89`; the
            same weights have the same id wherever they lie.
        width: Channels C of a token state.
        max_tokens: Longest sequence, special tokens included.
        fixed_tokens: Where not 0, every prompt is padded to as many tokens, and what the network
            makes of the padding counts as states of the prompt.
        truncated: Number of prompts that `encode` has cut so far, those that it remembered apart.
    """

    def __init__(
        self,
        id: str,
        network: Roberta,
        params: dict,
        tokenizer: "tokenizers.Tokenizer",
        max_tokens: int,
        fixed_tokens: int = 0,
    ) -> None:
        """Takes what `load_text_encoder` has read.

        Args:
            id: See the class.
            network: The network.
            params: Its parameters, float32.
            tokenizer: A tokenizer that neither pads nor truncates.
            max_tokens: Longest sequence wanted; lowered to what the network can take.
            fixed_tokens: See the class; no more than the network can take.
        """
        self.id = id
        self.width = network.config.width
        self.max_tokens = min(max_tokens, fixed_tokens or network.config.max_tokens)
        self.fixed_tokens = fixed_tokens
        self.truncated = 0
        self._tokenizer = tokenizer
        self._pad_id = network.config.pad_id
        longest = fixed_tokens or self.max_tokens
        self._buckets = (*(b for b in BUCKETS if b < longest), longest)
        self._params = jax.device_put(params)
        self._known: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()  # several threads may encode

        def apply(params: dict, ids_BL: jax.Array, mask_BL: jax.Array) -> jax.Array:
            return network.apply({"params": params}, ids_BL, mask_BL).astype(jnp.bfloat16)

        self._apply = jax.jit(apply)

    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Computes the token states of each prompt, or remembers them.

        A call of the network costs the same for one prompt as for `BATCH`: give many at once.

        Args:
            prompts: Texts of any length. One of more than `max_tokens` is cut behind its last
                property (", ", ";" or full stop) that fits, or at the last token where it has none;
                it is counted in `truncated` and a warning is logged.

        Returns:
            One bfloat16 array [L, C] per prompt, in order and unpadded; its rows are the tokens,
            special ones (first and last) included. L is `fixed_tokens` where that is not 0.
        """
        if isinstance(prompts, str):
            raise ValueError("encode takes a list of prompts, not one string")
        with self._lock:
            states = {p: self._known[p] for p in prompts if p in self._known}
            new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in states]
            states |= zip(new, self._encode(new), strict=True)
            for prompt in dict.fromkeys(prompts):
                self._known[prompt] = states[prompt]
                self._known.move_to_end(prompt)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return [states[prompt] for prompt in prompts]

    def exceeds(self, prompts: Sequence[str]) -> list[bool]:
        """Which of these prompts `encode` cuts."""
        encoded = self._tokenizer.encode_batch(list(prompts))
        return [len(tokens.ids) > self.max_tokens for tokens in encoded]

    def _encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """The states of distinct prompts."""
        ids = self._tokenize(prompts)
        groups: dict[int, list[int]] = {}
        for i, tokens in enumerate(ids):
            length = max(len(tokens), self.fixed_tokens)
            groups.setdefault(next(b for b in self._buckets if b >= length), []).append(i)
        states: list[np.ndarray | None] = [None] * len(ids)
        for bucket, members in sorted(groups.items()):
            for start in range(0, len(members), BATCH):
                rows = members[start : start + BATCH]
                out_BLC = self._run([ids[i] for i in rows], bucket)
                for i, out_LC in zip(rows, out_BLC, strict=False):
                    states[i] = out_LC[: max(len(ids[i]), self.fixed_tokens)].copy()
                    states[i].flags.writeable = False  # they are shared
        return states

    def _run(self, rows: list[list[int]], bucket: int) -> np.ndarray:
        """States [BATCH, bucket, C] of up to BATCH sequences; the other rows are meaningless."""
        ids_BL = np.full((BATCH, bucket), self._pad_id, np.int32)
        mask_BL = np.zeros((BATCH, bucket), bool)
        for row, tokens in enumerate(rows):
            ids_BL[row, : len(tokens)] = tokens
            mask_BL[row, : len(tokens)] = True
        return np.asarray(self._apply(self._params, ids_BL, mask_BL))

    def _tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, at most `max_tokens`, special tokens included."""
        ids = []
        cut = []
        for prompt, tokens in zip(
            prompts, self._tokenizer.encode_batch(list(prompts)), strict=True
        ):
            if len(tokens.ids) > self.max_tokens:
                cut.append(prompt)
                ids.append(self._cut(prompt))
            else:
                ids.append(tokens.ids)
        if cut:
            self.truncated += len(cut)
            logger.warning(
                "%d of %d prompts exceed %d tokens and were cut; the first: %r...",
                len(cut),
                len(ids),
                self.max_tokens,
                cut[0][:60],
            )
        return ids

    def _cut(self, prompt: str) -> list[int]:
        """Token ids of the longest allowed beginning that ends with a property, if there is one."""
        tokens = self._tokenizer.encode(prompt, add_special_tokens=False)
        specials = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        tokens.truncate(self.max_tokens - specials)
        last = tokens.offsets[-1][1]  # characters that fit
        ends = [m.start() for m in _BOUNDARY.finditer(prompt) if m.start() <= last]
        if ends:
            # At least one token: a prompt may begin with a boundary.
            tokens.truncate(max(1, sum(stop <= ends[-1] for _, stop in tokens.offsets)))
        return self._tokenizer.post_process(tokens).ids


def load_text_encoder(name: str, max_tokens: int = 512) -> TextEncoder:
    """Loads a pretrained text network of the RoBERTa or BERT family.

    Args:
        name: Weights by name (see `opensep_jax.checkpoint.weights.resolve`): "minilm",
            "roberta-base", a hub id, or a local folder.
        max_tokens: Longest sequence, special tokens included; lowered to what the network can take
            (512 for RoBERTa-base and MiniLM).

    Returns:
        The encoder, its parameters on the default device.

    Raises:
        ValueError: The name is unknown, or the folder holds another kind of model.
        WeightsError: The weights could not be downloaded.
    """
    folder = weights.resolve(name)
    if not (folder / "config.json").is_file():
        raise ValueError(f"weights {name!r}: {folder} has no config.json of a text encoder")
    hf_config = json.loads((folder / "config.json").read_text("utf-8"))
    config = RobertaConfig.from_hf(hf_config)
    network = Roberta(config)
    dummy = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    abstract = jax.eval_shape(network.init, jax.random.key(0), dummy, dummy)["params"]
    params = convert(read_safetensors(folder), ROBERTA_TABLE, abstract)
    digest = weights.content_hash(safetensors_files(folder))
    encoder_id = f"{hf_config['model_type']}-{config.layers}x{config.width}-{digest[:16]}"
    fixed_tokens = hf_config.get("fixed_tokens", 0)  # ours, see `import_predecessor`
    if fixed_tokens:
        encoder_id += f"-{fixed_tokens}"
    tokenizer = load_tokenizer(folder)
    return TextEncoder(encoder_id, network, params, tokenizer, max_tokens, fixed_tokens)
