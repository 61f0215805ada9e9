"""`prepare --inspect`: what records hold, to read and to hear."""

import json
from pathlib import Path

import numpy as np
import soundfile

from opensep_jax.batch.report import Track, section, write_page
from opensep_jax.cli import DoorError
from opensep_jax.data.records import PreparedDataset, read_info
from opensep_jax.data.storage import Storage


def inspect(folder: str, split: str | None, number: int, play: Path | None) -> None:
    """Prints what a folder holds and some of its records, evenly spread.

    Args:
        folder: prepared data, a path or a URL.
        split: whose records; default the first.
        number: records at most.
        play: folder for their sounds and a page to hear them; None writes nothing.
    """
    info = read_info(folder)
    storage = Storage(folder)
    if storage.exists("summary.json"):
        print(storage.local("summary.json").read_text("utf-8"), end="")
    dataset = PreparedDataset(folder, split or next(iter(info["splits"])))
    if not len(dataset):
        raise DoorError(f"{folder}: split {dataset.split} has no clips")
    chosen = sorted({int(i) for i in np.linspace(0, len(dataset) - 1, max(number, 0))})
    for index in chosen:
        print(json.dumps(describe(dataset, index), ensure_ascii=False, indent=1))
    if play is not None:
        _play(dataset, chosen, play)


def describe(dataset: PreparedDataset, index: int) -> dict:
    """All that a record says, its prompts as text; its samples are read and checked."""
    clip, pcm_T = dataset.clips[index], dataset.audio(index)
    level = np.sqrt(np.mean((pcm_T / 32768.0) ** 2))
    text = dataset.text
    return {
        "record": index,
        "path": clip.path,
        "start_s": clip.start_samples / dataset.sample_rate_hz,
        "seconds": clip.samples / dataset.sample_rate_hz,
        "rms_db": round(float(20 * np.log10(max(level, 1e-9))), 1),
        "sha256": clip.sha256,
        "captions": clip.captions,
        "sources": [
            {
                "name": source.name,
                "prompts": {
                    kind: [text.prompts[text.ids[key]] for key in keys]
                    for kind, keys in source.prompts.items()
                },
                "tokens": {
                    kind: [len(text.states(text.ids[key])) for key in keys]
                    for kind, keys in source.prompts.items()
                },
            }
            for source in clip.sources
        ],
        "extra": clip.extra,
    }


def _play(dataset: PreparedDataset, chosen: list[int], folder: Path) -> None:
    """Writes the records as WAV files, and `index.html` with a player for each."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = (_record(dataset, *one, folder) for one in enumerate(chosen, 1))
    write_page(folder / "index.html", f"{dataset.folder}, {dataset.split}", sections)
    print(f"{len(chosen)} records to hear: {folder / 'index.html'}")


def _record(dataset: PreparedDataset, number: int, index: int, folder: Path) -> str:
    """A record's section of the page; writes its WAV file."""
    file = folder / f"{dataset.split}-{index:07d}.wav"
    soundfile.write(file, dataset.audio(index), dataset.sample_rate_hz, "PCM_16")
    known = describe(dataset, index)
    names = ", ".join(source["name"] for source in known["sources"])
    prompts = {f"{i} {source['name']}": source for i, source in enumerate(known["sources"], 1)}
    tracks = [Track(names or "no words", file)]
    length, captions = f"{known['seconds']:.1f} s", " / ".join(known["captions"])
    return section(
        number, known["path"], tracks, folder, facts=length, caption=captions,
        details={"Prompts": prompts},
    )  # fmt: skip
