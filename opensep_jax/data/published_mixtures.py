"""Published mixtures -> a folder for `prepare`, and a list of which clips make them.

python -m opensep_jax.data.published_mixtures METADATA.csv --audio AUDIO --out FOLDER

METADATA.csv is one of `evaluation/metadata/*_eval.csv` of Audio-AGI/AudioSep, AUDIO the folder of
that set in its download (`evaluation/data/audiocaps`, ...): mixtures, and one source of each with
the text that asks for it. A mixture becomes two clips, that source and the rest, both at half the
level, so that nothing clips. FOLDER gets them with a manifest (split `test`), and `mixtures.csv`
for `published_lists`.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from opensep_jax.data.lists import PUBLISHED_GAIN
from opensep_jax.signal.audio import AudioError, read_audio


class Published(NamedTuple):
    """A mixture as it is published: files of it and of the source that is asked for by a text."""

    mixture: Path
    source: Path
    text: str


def read_metadata(file: Path, audio: Path) -> Iterator[Published]:
    """Rows of a list of AudioSep's evaluation.

    Args:
        file: `vggsound_eval.csv` names its files; in `audioset_eval.csv` they are in folders of
            classes; those of the other sets have the number of the row.
        audio: folder of the set.

    Raises:
        ValueError: the list has other columns.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        header, *rows = list(csv.reader(stream))
    column = {name: place for place, name in reversed(list(enumerate(header)))}
    if {"mix_wav", "s0_wav", "s0_text"} <= column.keys():
        for row in rows:
            mixture, source, text = (row[column[c]] for c in ("mix_wav", "s0_wav", "s0_text"))
            yield Published(audio / mixture, audio / source, text)
    elif {"idx", "caption", "src_wav"} <= column.keys():
        for row in rows:
            number, text, source = (row[column[c]] for c in ("idx", "caption", "src_wav"))
            if source.endswith(",source.wav"):
                place = audio / Path(source).parent.name / Path(source).name
                mixture = place.with_name(place.name.replace(",source.wav", ",mixture.wav"))
                yield Published(mixture, place, text)
            else:
                names = f"mixture-{number}.wav", f"segment-{number}.wav"
                yield Published(*(audio / name for name in names), text)
    else:
        raise ValueError(f"{file}: no list of AudioSep's evaluation; it has {', '.join(header)}")


def split_mixture(published: Published) -> tuple[np.ndarray, int]:
    """Source and rest of a mixture, float32 [2, T] at half the level, and their rate in Hz.

    Raises:
        ValueError: the files cannot be read, or differ in rate or length.
    """
    read = [read_audio(file) for file in (published.source, published.mixture)]
    waves = [one.samples_CT.mean(0) for one in read]
    if len(waves[0]) != len(waves[1]) or read[0].sample_rate_hz != read[1].sample_rate_hz:
        raise ValueError(
            f"{published.source}: {len(waves[0])} samples at {read[0].sample_rate_hz} Hz, but "
            f"{published.mixture.name} has {len(waves[1])} at {read[1].sample_rate_hz} Hz"
        )
    source_T, mix_T = waves
    return PUBLISHED_GAIN * np.stack([source_T, mix_T - source_T]), read[0].sample_rate_hz


def main() -> int:
    """Writes the folder; a mixture that cannot be read is named and left out."""
    flags = argparse.ArgumentParser(prog="opensep_jax.data.published_mixtures", description=__doc__)
    flags.add_argument("metadata", type=Path)
    flags.add_argument("--audio", required=True, type=Path)
    flags.add_argument("--out", required=True, type=Path)
    args = flags.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    clips, mixtures, failed = [], [], 0
    try:
        published = list(read_metadata(args.metadata, args.audio))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for number, one in enumerate(tqdm(published, "mixtures", disable=None)):
        try:
            parts_2T, rate_hz = split_mixture(one)
        except (ValueError, AudioError) as error:
            failed += 1
            print(error, file=sys.stderr)
            continue
        names = f"{number:05d}-source", f"{number:05d}-rest"
        for name, label, part_T in zip(names, (one.text, "rest"), parts_2T, strict=True):
            soundfile.write(args.out / f"{name}.wav", part_T, rate_hz, "PCM_24")
            clips.append((f"{name}.wav", label, label, "test"))
        mixtures.append((*names, one.text))
    _write_csv(args.out / "manifest.csv", ("path", "label", "caption", "split"), clips)
    _write_csv(args.out / "mixtures.csv", ("source", "noise", "caption"), mixtures)
    print(f"{len(mixtures)} mixtures, {failed} could not be read")
    return 1 if failed else 0


def _write_csv(file: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])


if __name__ == "__main__":
    sys.exit(main())
