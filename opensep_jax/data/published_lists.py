"""Published lists of mixtures -> lists for `evaluate --list`.

python -m opensep_jax.data.published_lists CSV --data PREPARED --out LIST.json

CSV has a header and a mixture in each row: `lass_synthetic_validation.csv` of DCASE 2024 task 9
(source, noise, snr, caption), or the `mixtures.csv` that `published_mixtures` makes of AudioSep's.
Clips are found in the records by their file names without suffix; a file that was cut, by its
first part.
"""

import argparse
import csv
import sys
from pathlib import Path, PurePosixPath

from opensep_jax.data.lists import ListedMixture, write_list
from opensep_jax.data.records import PreparedDataset, RecordError

_NEEDED = ("source", "noise", "caption")


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
    if not set(_NEEDED) <= set(header):
        raise RecordError(f"{file}: need columns {', '.join(_NEEDED)}; it has {', '.join(header)}")
    number = {
        PurePosixPath(clip.path).stem: i
        for i, clip in enumerate(dataset.clips)
        if not clip.start_samples
    }
    mixtures, missing = [], set()
    for item, row in enumerate(rows):
        names = [row[header.index(column)].removesuffix(".wav") for column in _NEEDED[:2]]
        missing |= {name for name in names if name not in number}
        snr_db = float(row[header.index("snr")]) if "snr" in header else 0.0
        mixtures.append(
            ListedMixture(
                clips=tuple(number.get(name, -1) for name in names),
                seed=(0, len(names), item, 1),
                levels_db=(snr_db,),
                texts=(row[header.index("caption")], ""),
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
    flags.add_argument("--data", required=True, help="folder or URL made by prepare")
    flags.add_argument("--split", required=True, help="as in the protocol")
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
