"""What has been scored so far, a line for each mixture, on disk as soon as a batch is done."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from opensep_jax.data.storage import read_json, write_json

_IDENTITY = "evaluation.json"
_OF_TRAINING = ("checkpoints", "metrics.jsonl")


class Journal:
    """Lines of one kind in a folder, by number of sources and item; several processes may write.

    Attributes:
        lines: those of all processes when the journal was opened, and what was added here.
    """

    def __init__(self, folder: Path, kind: str, shard: int = 0, num_shards: int = 1):
        """Reads what is there; a last line that a kill cut short is left out.

        Args:
            folder: of the evaluation.
            kind: what the files are called, such as `items`.
            shard: this process.
            num_shards: processes that write to the folder.
        """
        name = kind if num_shards == 1 else f"{kind}-{shard}-of-{num_shards}"
        self._kind, self._folder, self._file = kind, folder, folder / f"{name}.jsonl"
        self.lines: dict[tuple[int, int], dict] = {}
        self.refresh()
        self._cut_short = self._file.exists() and self._file.read_bytes()[-1:] not in (b"", b"\n")

    def refresh(self) -> None:
        """Reads what other processes have written meanwhile."""
        files = sorted(self._folder.glob(f"{self._kind}.jsonl"))
        for file in files + sorted(self._folder.glob(f"{self._kind}-*-of-*.jsonl")):
            for text in file.read_text().splitlines():
                try:
                    line = json.loads(text)
                    self.lines[line["sources"], line["item"]] = line
                except (ValueError, KeyError, TypeError):
                    continue

    def add(self, lines: Iterable[dict]) -> None:
        """Appends lines with the keys `sources` and `item`; they are on disk on return."""
        lines = list(lines)
        with self._file.open("a") as stream:
            stream.write("\n" if self._cut_short else "")
            stream.writelines(json.dumps(line) + "\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())
        self._cut_short = False
        self.lines |= {(line["sources"], line["item"]): line for line in lines}

    def finish(self) -> list[dict]:
        """Writes all lines in order to one file, and returns them."""
        lines = [self.lines[key] for key in sorted(self.lines)]
        temporary = self._folder / f".{self._kind}.{os.getpid()}.tmp"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        temporary.replace(self._folder / f"{self._kind}.jsonl")
        return lines


def claim(folder: Path, identity: dict) -> None:
    """Makes a folder that of one evaluation, which later runs go on with.

    Raises:
        ValueError: the folder holds another one, and the message names what differs; or a training
            run, whose log would be written over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _IDENTITY
    identity = json.loads(json.dumps(identity))
    if not file.exists():
        found = [name for name in _OF_TRAINING if (folder / name).exists()]
        if found:
            raise ValueError(
                f"{folder} holds a training run ({', '.join(found)}); use another --out"
            )
        write_json(file, identity)
        return
    stored = read_json(file)
    wrong = [k for k in sorted(stored.keys() | identity) if stored.get(k) != identity.get(k)]
    if wrong:
        raise ValueError(
            f"{folder} holds another evaluation ({', '.join(wrong)} differ); use another --out"
        )
