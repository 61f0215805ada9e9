"""What is in a recording that nobody has described: a caption, the sources it names, none twice.

discovery = Discovery(load_captioner("demo"), load_parser())
(found,) = discovery.find([discovery.hear(samples_CT, 44100)])
separator.separate(samples_CT, 44100, found.sources)
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from opensep_jax.text.caption import Captioner, WrittenCaptions
from opensep_jax.text.parse import Parser
from opensep_jax.text.segments import segments
from opensep_jax.text.source import Source

MERGE_SIMILARITY = 0.9  # "man talking" is "man speaking", a bass clarinet is no clarinet
MIN_ENERGY_SHARE = 0.01  # of all energy: sources that were found with less stay in the residual

Heard = list[np.ndarray] | str  # windows for the captioner, or a caption that is known


@dataclasses.dataclass(frozen=True)
class Found:
    """What a recording holds.

    Attributes:
        caption: what was said of it; empty where nothing is heard.
        sources: what the caption names, in its order.
        merged: names that were left out, and the name of the source that means the same.
    """

    caption: str
    sources: tuple[Source, ...]
    merged: tuple[tuple[str, str], ...]


class Discovery:
    """Captions recordings and finds the sources in their captions; a batch at a time.

    Attributes:
        captioner: listens; None where every caption is known.
        parser: reads captions.
        merge_similarity: cosine of two names in the parser's bank from which on they are one
            source; more than 1 merges nothing.
    """

    def __init__(
        self,
        captioner: Captioner | WrittenCaptions | None,
        parser: Parser,
        merge_similarity: float = MERGE_SIMILARITY,
    ):
        """Takes what was loaded."""
        self.captioner, self.parser = captioner, parser
        self.merge_similarity = merge_similarity

    def hear(self, samples_CT: np.ndarray, sample_rate_hz: int) -> Heard:
        """What `tell` needs of a recording, a small part of it; see `Captioner.hear`.

        Raises:
            ValueError: no captioner listens, or the recording is not as it has to be.
        """
        if not isinstance(self.captioner, Captioner):
            kind = "captions from a file know paths alone" if self.captioner else "it has none"
            raise ValueError(
                f"a captioner must listen to samples ({kind}): give queries or a caption"
            )
        return self.captioner.hear(samples_CT, sample_rate_hz)

    def hear_file(self, path: str | os.PathLike) -> Heard:
        """The same of a file of any length; see `Captioner.hear_file`."""
        return self.captioner.hear_file(path)

    def tell(self, heard: Sequence[Heard]) -> list[str]:
        """The captions of recordings, of which some may be known."""
        unknown = [part for part in heard if not isinstance(part, str)]
        told = iter(self.captioner.tell(unknown) if unknown else ())
        return [part if isinstance(part, str) else next(told) for part in heard]

    def read(self, captions: Sequence[str]) -> list[Found]:
        """The sources that captions name; none where a caption is empty.

        Raises:
            ValueError: a caption is not empty and has no word.
        """
        parses = iter(self.parser.parse([caption for caption in captions if caption]))
        return [
            self._merge(caption, next(parses).sources) if caption else Found("", (), ())
            for caption in captions
        ]

    def find(self, heard: Sequence[Heard]) -> list[Found]:
        """What is in recordings: `tell` and `read`."""
        return self.read(self.tell(heard))

    def agreements(
        self, names: Sequence[str], stems_ST: Sequence[np.ndarray], sample_rate_hz: int
    ) -> list[float | None]:
        """How far stems sound like their names, to the captioner.

        Args:
            names: what each stem should be.
            stems_ST: float32, a part of each.
            sample_rate_hz: of the stems.

        Returns:
            For each the cosine, in the parser's bank, of its name and the nearest name that the
            captioner's text of it has, at least 0: 0 too where it hears nothing. None if the
            captioner cannot listen.
        """
        if not isinstance(self.captioner, Captioner):
            return [None] * len(names)
        captions = self.captioner.caption(stems_ST, sample_rate_hz)
        found = []
        for name, caption in zip(names, captions, strict=True):
            heard = [segment.name for segment in segments(caption)] if caption else []
            vectors_NC = self.parser.bank.vectors([name, *heard])
            cosines = vectors_NC[1:] @ vectors_NC[0]
            found.append(max(0.0, float(cosines.max(initial=0.0))))
        return found

    def _merge(self, caption: str, sources: Sequence[Source]) -> Found:
        """Leaves out a source whose name means the same as an earlier one's."""
        vectors_SC = self.parser.bank.vectors([source.name for source in sources])
        kept: list[int] = []
        merged = []
        for i, vector_C in enumerate(vectors_SC):
            cosine_K = vectors_SC[kept] @ vector_C
            if len(kept) and cosine_K.max() >= self.merge_similarity:
                merged.append((sources[i].name, sources[kept[int(cosine_K.argmax())]].name))
            else:
                kept.append(i)
        return Found(caption, tuple(sources[i] for i in kept), tuple(merged))
