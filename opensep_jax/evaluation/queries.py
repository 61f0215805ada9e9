"""What the sources of listed mixtures are asked for with, as token states."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from opensep_jax.data.lists import ListedMixture, pad_texts, prompts
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.data.shards import prompt_key
from opensep_jax.text.embed import load_text_encoder

_TOKENS = 16  # prompts are padded to a multiple


@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
    """Token states of the prompts of a data set, and of texts that its records lack.

    Attributes:
        dataset: of the clips.
        added: bfloat16 states [L, C] by text.
    """

    dataset: PreparedDataset
    added: Mapping[str, np.ndarray]

    def states(self, mixture: ListedMixture, wording: str) -> list[np.ndarray]:
        """Token states [L, C] that each clip is asked for with: those of all its prompts."""
        return [
            np.concatenate([self._states_of(text) for text in texts])
            for texts in prompts(self.dataset, mixture, wording)
        ]

    def length(self, mixtures: Sequence[ListedMixture], wording: str) -> int:
        """Tokens that the prompts of these mixtures are padded to."""
        longest = max(len(s) for mixture in mixtures for s in self.states(mixture, wording))
        return _TOKENS * -(-longest // _TOKENS)

    def padded(
        self, mixtures: Sequence[ListedMixture], wording: str, length: int
    ) -> dict[str, np.ndarray]:
        """Texts of a batch: `text` [B, S, L, C] and `text_mask` [B, S, L]."""
        rows = [pad_texts(self.states(mixture, wording), length) for mixture in mixtures]
        states, masks = (np.stack(part) for part in zip(*rows, strict=True))
        return {"text": states, "text_mask": masks}

    def _states_of(self, text: str) -> np.ndarray:
        if text in self.added:
            return self.added[text]
        table = self.dataset.text
        return table.states(table.ids[prompt_key(text, self.dataset.info["text_encoder"]["id"])])


def load_queries(
    dataset: PreparedDataset,
    lists: Mapping[int, Sequence[ListedMixture]],
    wordings: Sequence[str],
) -> Queries:
    """Queries of these lists; texts that the records lack are embedded by the records' encoder.

    Published lists ask with captions of their own, and `prepare` embeds what it trains with.

    Args:
        dataset: of the clips.
        lists: mixtures by number of sources.
        wordings: kinds of prompts.

    Raises:
        RecordError: the encoder that is found by the name in the records is another one.
    """
    about = dataset.info["text_encoder"]
    wanted = {
        text
        for mixtures in lists.values()
        for mixture in mixtures
        for wording in wordings
        for texts in prompts(dataset, mixture, wording)
        for text in texts
    }
    lacking = sorted(t for t in wanted if prompt_key(t, about["id"]) not in dataset.text.ids)
    if not lacking:
        return Queries(dataset, {})
    encoder = load_text_encoder(about["name"], about["max_tokens"])
    if encoder.id != about["id"]:
        raise RecordError(
            f"{dataset.folder}: {len(lacking)} texts such as {lacking[0]!r} are to be embedded as "
            f"its prompts are, by {about['id']}, but {about['name']} is {encoder.id}"
        )
    return Queries(dataset, dict(zip(lacking, encoder.encode(lacking), strict=True)))
