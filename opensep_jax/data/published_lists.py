"""Published lists of mixtures -> lists for `evaluate --list`.

python -m opensep_jax.data.published_lists CSV --data PREPARED --out LIST.json

CSV has a header and a mixture in each row: `lass_synthetic_validation.csv` of DCASE 2024 task 9
(source, noise, snr, caption), or `evaluation/metadata/*_eval.csv` of Audio-AGI/AudioSep (caption,
src_wav, noise_wav). Clips are found in the records by their file names without suffix.
"""

import argparse
import csv
import sys
from pathlib import Path, PurePosixPath

from opensep_jax.data.lists import ListedMixture, write_list
from opensep_jax.data.records import PreparedDataset, RecordError

_FIRST, _OTHERS = ("source", "src_wav"), ("noise", "noise_wav")


def read_csv(file: Path, dataset: PreparedDataset) -> list[ListedMixture]:
    """Mixtures of a published list: the first clip is asked for by the caption of its row.

    Args:
        file: see the module.
        dataset: which has the clips.

    Returns:
        Mixtures in the order of the file, at the SNR that it tells, else at 0 dB.

    Raises:
        RecordError: a column or clips are missing.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        header, *rows = list(csv.reader(stream))
    first = [i for i, name in enumerate(header) if name in _FIRST]
    others = [i for i, name in enumerate(header) if name.rstrip("0123456789") in _OTHERS]
    if not first or not others or "caption" not in header:
        raise RecordError(
            f"{file}: need columns caption, {' or '.join(_FIRST)}, and {' or '.join(_OTHERS)}; it "
            f"has {', '.join(header)}"
        )
    number = {PurePosixPath(clip.path).stem: i for i, clip in enumerate(dataset.clips)}
    mixtures, missing = [], set()
    for item, row in enumerate(rows):
        names = [row[i].removesuffix(".wav") for i in (*first, *others)]
        missing |= {name for name in names if name not in number}
        snr_db = float(row[header.index("snr")]) if "snr" in header else 0.0
        mixtures.append(
            ListedMixture(
                clips=tuple(number.get(name, -1) for name in names),
                seed=(0, len(names), item, 1),
                levels_db=(snr_db,) * len(others),
                texts=(row[header.index("caption")], *[""] * len(others)),
            )
        )
    if missing:
        raise RecordError(
            f"{file}: {len(missing)} of its clips are not in split {dataset.split} of "
            f"{dataset.folder}, such as {min(missing)}"
        )
    return mixtures


def main() -> int:
    """Reads a CSV file and writes a list."""
    flags = argparse.ArgumentParser(prog="opensep_jax.data.published_lists", description=__doc__)
    flags.add_argument("csv", type=Path)
    flags.add_argument("--data", required=True, type=Path, help="folder made by prepare")
    flags.add_argument("--split", default="val")
    flags.add_argument("--out", required=True, type=Path)
    args = flags.parse_args()
    try:
        dataset = PreparedDataset(args.data, args.split)
        mixtures = read_csv(args.csv, dataset)
        write_list(args.out, dataset, {len(mixtures[0].clips): mixtures})
    except (RecordError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
