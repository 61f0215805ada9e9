"""The stages of `prepare`: cut, caption, parse, index, embed.

A stage keeps what it has made under the output folder, by shard and content, and makes only what
is missing. `stages/` holds what later stages read; the rest are the records themselves:

    clips-<split>-*.arrayrecord, stages/<shard>.cut   samples, and where they come from
    stages/<shard>.captions, stages/<shard>.answers   lines of what captioner and parser said
    clips-<split>-*.index, stages/<shard>.prompts     words of the clips, and their prompts
    text-*.arrayrecord, text-*.index                  all distinct prompts, embedded
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgpack
import numpy as np

from opensep_jax.data import shards, wording
from opensep_jax.data.cutting import CutCounts, cut_file
from opensep_jax.data.datasets import Clip, Dataset
from opensep_jax.data.ledger import Ledger
from opensep_jax.data.progress import Progress
from opensep_jax.data.storage import is_left_over, write_bytes
from opensep_jax.data.text_table import open_reader, read_msgpack, read_states, write_text_shard
from opensep_jax.signal.audio import AudioError
from opensep_jax.text.caption import Captioner, WrittenCaptions
from opensep_jax.text.embed import TextEncoder
from opensep_jax.text.parse import Parser

logger = logging.getLogger("opensep_jax")

FILES_PER_SHARD = 512
PROMPTS_PER_SHARD = 4096
_HEARD_AT_ONCE = 16  # clips between two writes of captions
_EMBEDDED_AT_ONCE = 256  # prompts between two reports


@dataclasses.dataclass(frozen=True)
class Work:
    """One process's share of preparing a data set.

    Attributes:
        out: folder of the records.
        dataset: what is prepared.
        plan: everything that the records depend on, besides the audio files themselves.
        encoder: of prompts.
        parser: of captions, or None if nothing is parsed.
        captioner: or None if nothing is listened to.
        shard: number of this process.
        num_shards: processes that share the work.
    """

    out: Path
    dataset: Dataset
    plan: dict
    encoder: TextEncoder
    parser: Parser | None
    captioner: Captioner | WrittenCaptions | None
    shard: int
    num_shards: int

    @property
    def words(self) -> str:
        """How clips get their words, a name of `wording.WORDS`."""
        return self.plan["words"]["from"]

    def tasks(self) -> list[tuple[str, list[Clip]]]:
        """Stem and clips of each of this process's shards."""
        return all_tasks(self.dataset, self.plan)[self.shard :: self.num_shards]

    def stage(self, stem: str, kind: str) -> Path:
        """File of a stage."""
        return self.out / "stages" / f"{stem}.{kind}"


def all_tasks(dataset: Dataset, plan: dict) -> list[tuple[str, list[Clip]]]:
    """Stem and clips of each shard, in a fixed order."""
    tasks = []
    for split, count in plan["clip_shards"].items():
        clips = [clip for clip in dataset.clips if clip.split == split]
        for i in range(count):
            part = clips[i * FILES_PER_SHARD : (i + 1) * FILES_PER_SHARD]
            tasks.append((shards.shard_name(f"clips-{split}", i, count), part))
    return tasks


def cut(work: Work) -> None:
    """Decodes, resamples and cuts the files; what cannot be read is noted.

    A shard is cut again when one of its files has come, gone or changed since.
    """
    tasks = work.tasks()
    with Progress("cut", "files", sum(len(clips) for _, clips in tasks)) as progress:
        for stem, clips in tasks:
            file, seen = work.stage(stem, "cut"), _files_seen(work.dataset.root, clips)
            if file.exists() and read_msgpack(file)["files"] == seen:
                progress.skip(len(clips))
                continue
            counts, rejected = CutCounts(), []
            parts = _cut_clips(work, clips, counts, rejected, progress)
            audio = work.plan["audio"], work.plan["sample_rate_hz"]
            rows = shards.write_audio(work.out / f"{stem}.arrayrecord", parts, *audio)
            made = {"files": seen, "clips": rows, "rejected": rejected}
            write_bytes(file, msgpack.packb({**made, "counts": dataclasses.asdict(counts)}))


def caption(work: Work) -> None:
    """Has the captioner listen to every clip; clips of the same samples are heard once."""
    if work.captioner is None:
        return
    stems = [stem for stem, _ in work.tasks()]
    with Progress("caption", "clips", sum(len(_rows(work, stem)) for stem in stems)) as progress:
        for stem in stems:
            clips = _rows(work, stem)
            said = Ledger(work.stage(stem, "captions"))
            missing = {_heard_key(work, clip): i for i, clip in enumerate(clips)}
            missing = {key: i for key, i in missing.items() if key not in said}
            progress.skip(len(clips) - len(missing))
            audio = _audio_of(work, stem)
            for chunk in _chunks(missing.items(), _HEARD_AT_ONCE):
                said.add(_listen(work, [(key, clips[i], audio(i)) for key, i in chunk]))
                progress.add(len(chunk))


def parse(work: Work) -> None:
    """Has the parser find the sources of every caption, or describe every label."""
    if work.parser is None:
        return
    tasks = work.tasks()
    total = sum(len(_questions(work, stem, clips)) for stem, clips in tasks)
    with Progress("parse", "texts", total) as progress:
        known: dict[str, object] = {}
        for stem, clips in tasks:
            texts, answers = _questions(work, stem, clips), Ledger(work.stage(stem, "answers"))
            progress.skip(sum(text in answers for text in texts))
            for done in wording.answer(work.parser, texts, work.words, answers, known):
                progress.add(done)


def index(work: Work) -> None:
    """Joins samples and words: the index of every shard, and the prompts that it points to."""
    for stem, clips in work.tasks():
        made = read_msgpack(work.stage(stem, "cut"))
        answers = Ledger(work.stage(stem, "answers")) if work.parser else None
        said = Ledger(work.stage(stem, "captions")) if work.captioner else None
        rows, prompts, rejected = [], set(), list(made["rejected"])
        for row in made["clips"]:
            clip = clips[row["clip"]]
            heard = said[_heard_key(work, row)] if said else ""
            told = wording.tell(clip, work.words, heard, answers)
            if isinstance(told, str):
                rejected.append({"path": row["path"], "why": f"{row['path']}: {told}"})
                told = wording.Told((), ())
            kinds = wording.prompts_of(told, work.words, answers) if told.sources else []
            prompts |= {text for own in kinds for texts in own.values() for text in texts}
            sources = wording.source_entries(told, kinds, work.encoder.id)
            rows.append((row, sources, list(told.captions), clip.extra))
        content = shards.pack_index(work.out / stem, rows, rejected)
        write_if_new(work.out / f"{stem}.index", content)
        # Last: where it is, `missing_shards` takes the shard for finished.
        write_if_new(work.stage(stem, "prompts"), msgpack.packb(sorted(prompts)))


def missing_shards(work: Work) -> list[str]:
    """Shards of clips that other processes have not finished."""
    stems = [stem for stem, _ in all_tasks(work.dataset, work.plan)]
    return [stem for stem in stems if not work.stage(stem, "prompts").exists()]


def embed(work: Work, share: bool) -> int:
    """Embeds all distinct prompts; states that an earlier run has made are taken from its shards.

    Args:
        work: with every shard of clips finished.
        share: leave the shards of other processes to them.

    Returns:
        Number of shards of the text table.
    """
    stems = [stem for stem, _ in all_tasks(work.dataset, work.plan)]
    prompts = {text for stem in stems for text in read_msgpack(work.stage(stem, "prompts"))}
    rows = sorted((shards.prompt_key(text, work.encoder.id), text) for text in prompts)
    parts = [
        rows[i : i + PROMPTS_PER_SHARD] for i in range(0, max(len(rows), 1), PROMPTS_PER_SHARD)
    ]
    known = _known_states(work.out)
    # Processes that find everything parsed at the same time begin at different places.
    order = sorted(range(len(parts)), key=lambda i: (i - work.shard) % work.num_shards)
    with Progress("embed", "prompts", len(rows)) as progress:
        for number in order:
            stem = work.out / shards.shard_name("text", number, len(parts))
            if share and number % work.num_shards != work.shard:
                progress.skip(len(parts[number]))
            elif _has_keys(stem, [key for key, _ in parts[number]]):
                progress.skip(len(parts[number]))
            else:
                _embed_shard(work.encoder, stem, parts[number], known, progress)
    return len(parts)


def remove_left_overs(work: Work, text_shards: int) -> None:
    """Removes what killed processes and smaller text tables have left behind."""
    for file in itertools.chain(work.out.glob(".*.tmp"), (work.out / "stages").glob(".*.tmp")):
        if is_left_over(file):
            file.unlink(missing_ok=True)
    for file in work.out.glob("text-*-of-*.*"):
        if f"-of-{text_shards:05d}." not in file.name:
            file.unlink(missing_ok=True)


def write_if_new(file: Path, content: bytes) -> None:
    """Leaves a file alone that holds this already."""
    if not file.exists() or file.read_bytes() != content:
        write_bytes(file, content)


def _files_seen(root: Path, clips: Sequence[Clip]) -> str:
    """Hash of names, sizes and times of the files of a shard."""
    seen = []
    for clip in clips:
        try:
            status = os.stat(root / clip.path) if clip.path is not None else None
        except (OSError, ValueError):  # gone, not permitted, or no name of a file
            status = None
        seen.append([clip.id, clip.path, status and [status.st_size, status.st_mtime_ns]])
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _cut_clips(
    work: Work, clips: Sequence[Clip], counts: CutCounts, rejected: list[dict], progress: Progress
) -> Iterator[tuple[dict, np.ndarray]]:
    """Clips of files, with what is known of them."""
    plan = work.plan
    for number, clip in enumerate(clips):
        progress.add(1)
        if clip.path is None:
            continue
        if clip.path != os.fsencode(clip.path).decode(errors="replace"):  # no record could hold it
            shown = ascii(clip.path)
            rejected.append({"path": shown, "why": f"{shown}: its name is not UTF-8; rename it"})
            continue
        path, kept = work.dataset.root / clip.path, 0
        try:
            for speed in plan["speeds"] if clip.split.startswith("train") else (1.0,):
                settings = plan["sample_rate_hz"], plan["max_seconds"], counts, speed
                for start, pcm_T in cut_file(path, *settings):
                    known = {"path": clip.path, "start_samples": start, "clip": number}
                    yield known | ({"speed": speed} if speed != 1 else {}), pcm_T
                    kept += 1
        except AudioError as error:
            why = f"{error}; {kept} clips from before that are kept" if kept else str(error)
            rejected.append({"path": clip.path, "why": why})


def _rows(work: Work, stem: str) -> list[dict]:
    """What the stage `cut` knows of each clip of a shard."""
    return read_msgpack(work.stage(stem, "cut"))["clips"]


def _questions(work: Work, stem: str, clips: Sequence[Clip]) -> list[str]:
    """What the parser is asked for a shard."""
    rows = _rows(work, stem)
    said = Ledger(work.stage(stem, "captions")) if work.captioner else None
    heard = [said[_heard_key(work, row)] for row in rows] if said else []
    return wording.questions([clips[row["clip"]] for row in rows], work.words, heard)


def _heard_key(work: Work, row: dict) -> str:
    """What a caption of a clip is kept by: its samples, or where it is looked up."""
    return row["path"] if isinstance(work.captioner, WrittenCaptions) else row["sha256"]


def _audio_of(work: Work, stem: str):
    """Samples of a record of a shard, float32 [1, T]."""
    reader = open_reader(work.out / f"{stem}.arrayrecord")

    def audio(row: int) -> np.ndarray:
        stored = msgpack.unpackb(reader.read([row])[0])["audio"]
        return shards.decode(stored, work.plan["audio"])[None].astype(np.float32) / 32768

    return audio


def _listen(work: Work, clips: Sequence[tuple[str, dict, np.ndarray]]) -> dict[str, str]:
    """Captions by key; empty where there is none."""
    said, heard = {key: "" for key, _, _ in clips}, {}
    for key, row, wave_1T in clips:
        if not isinstance(work.captioner, WrittenCaptions):
            heard[key] = work.captioner.hear(wave_1T, work.plan["sample_rate_hz"])
            continue
        try:
            heard[key] = work.captioner.hear_file(work.dataset.root / row["path"])
        except ValueError as error:  # not in the file of captions
            logger.warning("%s", error)
    return said | dict(zip(heard, work.captioner.tell(list(heard.values())), strict=True))


def _has_keys(stem: Path, keys: list[str]) -> bool:
    file = stem.with_suffix(".index")
    return file.exists() and read_msgpack(file)["keys"] == keys


def _known_states(out: Path) -> dict[str, tuple[Path, int, bool]]:
    """Shard, row and whether it was cut, of every prompt that is embedded."""
    found = {}
    for file in sorted(out.glob("text-*.index")):
        made = read_msgpack(file)
        cut = set(made["truncated"])
        for row, key in enumerate(made["keys"]):
            found[key] = file.with_suffix(".arrayrecord"), row, key in cut
    return found


def _embed_shard(
    encoder: TextEncoder,
    stem: Path,
    rows: Sequence[tuple[str, str]],
    known: dict[str, tuple[Path, int, bool]],
    progress: Progress,
) -> None:
    """Writes a shard of (key, prompt), with known states where there are any."""
    states, cut = {}, []
    for key, _ in rows:
        if key in known:
            file, row, was_cut = known[key]
            found = read_states(file, row, key, encoder.width)
            if found is not None:
                states[key] = found
                cut += [key] * was_cut
    progress.skip(len(states))
    rest = [(key, text) for key, text in rows if key not in states]
    for chunk in _chunks(rest, _EMBEDDED_AT_ONCE):
        texts = [text for _, text in chunk]
        for (key, _), own, is_cut in zip(
            chunk, encoder.encode(texts), encoder.exceeds(texts), strict=True
        ):
            states[key] = own
            cut += [key] * is_cut
        progress.add(len(chunk))
    write_text_shard(stem, [(key, text, states[key]) for key, text in rows], cut)


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
