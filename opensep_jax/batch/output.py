"""What becomes of an input's stems in `infer`: chosen, written and described, all or nothing."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from opensep_jax import __version__
from opensep_jax.batch import results
from opensep_jax.batch.work import Options, Work
from opensep_jax.separation.confidence import Evidence
from opensep_jax.separation.engine import Processed
from opensep_jax.separation.result import (
    SeparatedSource,
    clipping_notes,
    described,
    judge,
    with_share,
    write_record,
)
from opensep_jax.separation.stemfiles import (
    RESIDUAL,
    WITHOUT,
    Selection,
    Spool,
    StemFiles,
    gain_to_fit,
)
from opensep_jax.separation.stream import Signal
from opensep_jax.text.match import means

logger = logging.getLogger("opensep_jax")


class Output:
    """A `stream.Sink` that writes the result folder of one input.

    Stems go to their files as they come. Where they are chosen by what is in them, or turned down
    to fit, they wait in a nameless file of the output folder until the input is done: 4 bytes for
    each sample of the input and of each stem.
    """

    def __init__(
        self,
        work: Work,
        options: Options,
        signal: Signal,
        notes: Sequence[str],
        agreements: Callable[[Work, list[np.ndarray]], list[float | None]],
    ):
        """Opens the folder.

        Args:
            work: the input.
            options: of the user.
            signal: the input's sound.
            notes: what is known of it before it is separated.
            agreements: tells how far parts of stems, float32 [T], sound like their names.
        """
        self._work, self._options, self._notes = work, options, notes
        self._signal, self._frames = signal, 0
        self._agreements, self._evidence = agreements, Evidence(len(work.sources))
        with contextlib.ExitStack() as closing:
            staged = results.staged(options.out, work.job.relative)
            self._folder: Path = closing.enter_context(staged)
            everything = range(len(work.sources))
            self._target: Spool | StemFiles = closing.enter_context(
                Spool(self._folder, len(everything), signal.channels)
                if options.waits(work.job.request) and (work.sources or options.encoding.rescales)
                else self._files(everything)
            )
            self._closing = closing.pop_all()

    def heard(self, processed: Processed) -> None:
        """Collects what tells how far the stems can be trusted."""
        self._evidence.add(processed)

    def write(self, input_CT: np.ndarray, stems_SCT: np.ndarray) -> None:
        """Appends a block."""
        self._frames += input_CT.shape[1]
        with self._work.watch.timing("write"):
            self._target.write(input_CT, stems_SCT)

    def finish(self) -> None:
        """Chooses among the stems, describes them, and gives the folder its name."""
        work, files = self._work, self._target
        agreements = self._agreements(work, self._evidence.parts())
        sources = judge(work.sources, files.energies.shares(), self._evidence, agreements)
        kept = self._chosen(sources)
        if isinstance(files, Spool):
            with work.watch.timing("write"):
                files = self._write_chosen(files, kept)
        write_record(self._folder, self._record(sources, kept, files))
        self._closing.close()

    def abort(self) -> None:
        """Leaves nothing."""
        error = InterruptedError("not finished")
        self._closing.__exit__(type(error), error, None)

    def _chosen(self, sources: Sequence[SeparatedSource]) -> list[int]:
        """Indices of the stems that are written; the others stay in the residual."""
        work, request = self._work, self._work.job.request
        least_share = self._options.least_share(request)

        def is_wanted(source: SeparatedSource) -> bool:
            asked = not request.only or any(means(text, source.name) for text in request.only)
            clear = source.confidence >= request.min_confidence
            return asked and clear and source.energy_share >= least_share

        kept = [i for i, s in enumerate(sources) if i not in work.suppressed and is_wanted(s)]
        kept = sorted(kept, key=lambda i: -sources[i].energy_share)[: request.max_sources]
        return sorted([*kept, *work.suppressed])

    def _files(self, kept: Sequence[int], gain: float = 1.0) -> StemFiles:
        """The files of some stems."""
        return StemFiles(
            self._folder,
            [self._work.sources[i].name for i in kept],
            self._options.encoding,
            self._signal.sample_rate_hz,
            self._signal.channels,
            gain=gain,
            selection=Selection(self._options.residual, self._gone(kept)),
        )

    def _gone(self, kept: Sequence[int]) -> tuple[int, ...]:
        """Places of the suppressed stems among some."""
        return tuple(place for place, i in enumerate(kept) if i in self._work.suppressed)

    def _write_chosen(self, spool: Spool, kept: Sequence[int]) -> StemFiles:
        """Writes stems that have waited."""
        encoding, gone = self._options.encoding, self._gone(kept)
        gain = gain_to_fit(lambda: spool.blocks(kept), encoding, gone)
        with self._files(kept, gain) as files:
            for block in spool.blocks(kept):
                files.write(*block)
        return files

    def _record(
        self, sources: Sequence[SeparatedSource], kept: Sequence[int], files: StemFiles
    ) -> dict:
        """What `separation.json` says of the input and its stems."""
        work, request, rate_hz = self._work, self._work.job.request, self._signal.sample_rate_hz
        written = [
            with_share(sources[i], share)
            for i, share in zip(kept, files.energies.shares(), strict=True)
        ]
        missing = [t for t in request.only if not any(means(t, s.name) for s in sources)]
        notes = [*self._notes, *(f"nothing like {text!r} is in it" for text in missing)]
        notes += clipping_notes(files.clipping)
        for note in notes:
            logger.info("%s: %s", work.job.path, note)
        others = {key: {"file": name} for key, name in files.others.items()}
        if WITHOUT in others:
            others[WITHOUT]["names"] = [work.sources[i].name for i in work.suppressed]
        return {
            "input": str(work.job.path),
            "input_path": os.path.abspath(work.job.path),  # wherever the page is made later
            "sample_rate_hz": rate_hz,
            "channels": self._signal.channels,
            "seconds": self._frames / rate_hz,
            "caption": work.caption,
            "sources": described(written, files.names),
            "merged": [list(pair) for pair in work.found.merged] if work.found else [],
            RESIDUAL: None,
            **others,
            "notes": notes,
            "clipping": files.clipping,
            "dropped": [dataclasses.asdict(s) for i, s in enumerate(sources) if i not in kept],
            **work.identity,
            "timings_s": work.watch.rounded(),
            "version": __version__,
        }
