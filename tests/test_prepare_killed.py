"""`prepare` under `kill -9` in any stage, and shared by processes that run at once.

The processes are children of one that has neither networks nor threads: each does a part, is
killed, and the next one goes on.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.tiny_published import write_audiocaps

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("cut", "caption", "parse", "embed", "finish")
PROGRAM = r"""
import os, signal, sys, warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from opensep_jax import prepare
from opensep_jax.preparation import stages as preparing
from opensep_jax.data import cutting, wording
from opensep_jax.text.parse import Parser
from tests.scripted_model import letter_bank

warnings.simplefilter("ignore")  # fork: no thread of jax runs here
root, folder, log = (Path(name) for name in sys.argv[1:])
preparing.FILES_PER_SHARD, preparing.PROMPTS_PER_SHARD = 7, 11
preparing._HEARD_AT_ONCE = wording._CHUNK = 3
deadly = {"stage": None, "left": 0}


def note(stage, what):
    # Done by now; what is killed was not noted before.
    with open(log, "a") as file:
        file.write(f"{stage} {what}\n")


def risk(stage):
    if deadly["stage"] == stage:
        deadly["left"] -= 1
        if deadly["left"] < 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Captioner:
    id = "counting"

    def hear(self, wave_1T, rate_hz):
        crossings = int(np.sum(np.diff(np.sign(wave_1T[0])) != 0))
        return f"A dog barks {crossings} times while a bell rings"

    def tell(self, heard):
        risk("caption")
        for text in heard:
            note("caption", text)
        return heard


class Counting(Parser):
    def parse(self, captions):
        risk("parse")
        for text in captions:
            note("parse", text)
        return super().parse(captions)


class Encoder:
    id, width, max_tokens = "letters", 4, 99

    def encode(self, prompts):
        risk("embed")
        for text in prompts:
            note("embed", text)
        return [np.full((len(p), 4), len(p), np.float32) for p in prompts]

    def exceeds(self, prompts):
        return [len(p) > 40 for p in prompts]


class Reader(cutting.AudioReader):
    def __init__(self, path):
        risk("cut")
        note("cut", path)
        super().__init__(path)


def write_json(path, content):
    if path.name == "dataset.json":
        risk("finish")
    return writer(path, content)


writer = prepare.write_json
cutting.AudioReader, prepare.write_json = Reader, write_json
prepare.load_captioner = lambda **options: Captioner()
prepare.load_parser = lambda **options: Counting(None, letter_bank(), {})
prepare.load_text_encoder = lambda *options: Encoder()
letter_bank()


def start(out, *flags, stage=None, left=0):
    pid = os.fork()
    if pid:
        return pid
    deadly.update(stage=stage, left=left)
    given = ["--dataset", "audiocaps", "--root", root, "--out", folder / out]
    given += ["--words", "captioner", *flags]
    os._exit(prepare.main(prepare.parser().parse_args(list(map(str, given)))))


def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


assert end(start("straight")) == 0
os.rename(log, str(log) + ".straight")
for stage, left in (("cut", 8), ("caption", 4), ("parse", 4), ("embed", 1), ("finish", 0)):
    assert end(start("killed", stage=stage, left=left)) == -signal.SIGKILL, stage
    assert not (folder / "killed" / "dataset.json").exists()
assert end(start("killed")) == 0
os.rename(log, str(log) + ".killed")
both = [start("shared", "--num_shards", 2, "--shard", shard) for shard in (0, 1)]
assert [end(pid) for pid in both] == [0, 0]
os.rename(log, str(log) + ".shared")
assert end(start("shared")) == 0
assert not log.exists()  # nothing was left to do
print("done")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folders `straight`, `killed` and `shared`, and what each has done in `log.<name>`."""
    folder = tmp_path_factory.mktemp("killed")
    root = write_audiocaps(folder / "root", takes=3)
    command = [sys.executable, "-c", PROGRAM, root, folder, folder / "log"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr[-3000:]
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _done(runs: Path, name: str) -> list[str]:
    return (runs / f"log.{name}").read_text().splitlines()


def test_a_run_that_was_killed_in_every_stage_gives_the_same(runs):
    assert _content(runs / "killed") == _content(runs / "straight")
    assert sum("arrayrecord" in name for name in _content(runs / "straight")) > 5


def test_nothing_that_was_finished_is_done_twice(runs):
    """But for the files of the one shard that was being cut."""
    straight, killed = (Counter(_done(runs, name)) for name in ("straight", "killed"))
    assert {line.split()[0] for line in straight} == set(STAGES[:4])
    twice = killed - straight
    assert not straight - killed
    assert {line.split()[0] for line in twice} == {"cut"} and sum(twice.values()) == 2


def test_two_processes_at_once_are_one_run(runs):
    assert _content(runs / "shared") == _content(runs / "straight")
    shared, straight = (Counter(_done(runs, name)) for name in ("shared", "straight"))
    # Both may hear of a caption, and both may find everything parsed at the same moment.
    twice = shared - straight
    assert not straight - shared and {line.split()[0] for line in twice} <= {"parse", "embed"}
