"""Imports flow one way, and the networks stand alone."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "opensep_jax"

# Rooms from the ground up: a room imports from rooms of lower rank, or from itself.
RANK = {
    "chips": 0,
    "signal": 0,
    "models": 0,
    "sharding": 0,
    "processes": 0,
    "checkpoint": 0,
    "text": 1,
    "data": 1,
    "discovery": 2,
    "separator": 2,
    "training": 3,
    "planning": 3,
    "separation": 3,
    "api": 4,
    "evaluation": 5,
}
DOORS = {"prepare", "parse", "train", "evaluate", "infer", "plan", "doctor", "import_predecessor"}
DOOR_PARTS = {
    "cli",
    "batch",
    "preparation",
    "flags",
    "run_config",
    "training_run",
    "tasks",
    "forecast",
}  # what doors share, or are split into
MODEL_LIBRARIES = {"jax", "flax"}
WEIGHT_FILES = {  # published weights
    "convert.py",
    "tables.py",
    "paper_table.py",
    "safetensors.py",
    "pth.py",
    "gguf_file.py",
}
WEIGHT_LIBRARIES = MODEL_LIBRARIES | {"numpy", "ml_dtypes", "gguf"}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imports(file: Path, when_loaded: bool = False) -> list[tuple[int, str]]:
    """Line and dotted name of what is imported: anywhere in a file, or as soon as it is loaded."""
    found, tree = [], ast.parse(file.read_text("utf-8"))
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def _room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _own_imports(file: Path) -> list[tuple[int, str]]:
    """Line and room (or door) of the imports from this package."""
    found = []
    for line, name in _imports(file):
        first, *rest = name.split(".")
        if first == "opensep_jax" and rest and not rest[0].startswith("__"):
            found.append((line, rest[0]))
    return found


def test_every_module_has_its_place():
    rooms = {_room(file) for file in _modules()} - {"__init__"}
    assert rooms <= {*RANK, *DOORS, *DOOR_PARTS}, "give new modules a place in the tables above"


@pytest.mark.parametrize("room", RANK)
def test_rooms_import_from_below_only(room):
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {other}"
        for file in _modules()
        if _room(file) == room
        for line, other in _own_imports(file)
        if other not in RANK or RANK[other] > RANK[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_a_door():
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {other}"
        for file in _modules()
        for line, other in _own_imports(file)
        if other in DOORS
    ]
    assert not wrong, "\n".join(wrong)


def test_networks_import_only_jax_and_flax():
    wrong = []
    for file in (PACKAGE / "models").glob("*.py"):
        allowed = WEIGHT_LIBRARIES if file.name in WEIGHT_FILES else MODEL_LIBRARIES
        for line, name in _imports(file):
            first = name.split(".")[0]
            inside = name.startswith("opensep_jax.models")
            if not inside and first not in allowed and first not in sys.stdlib_module_names:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_configs_and_flags_stay_in_the_doors():
    """Below there are named arguments only; a room may hold a small command of its own."""
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in _modules()
        if _room(file) not in {*DOORS, *DOOR_PARTS} and "__main__" not in file.read_text("utf-8")
        for line, name in _imports(file)
        if name.split(".")[0] in ("absl", "argparse", "ml_collections", "configs")
    ]
    assert not wrong, "\n".join(wrong)


def test_training_a_separator_loads_no_captioner_and_no_language_model():
    heavy = {"caption", "captioner", "captioner_task", "parse", "llama", "gpt2", "htsat", "clapcap"}
    heavy |= {"whisper", "act"}
    seen, queue = set(), [PACKAGE / "train.py"]
    while queue:
        file = queue.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        for _, name in _imports(file, when_loaded=True):
            parts = name.split(".")
            if parts[0] == "opensep_jax":
                for end in range(1, len(parts)):
                    base = PACKAGE.joinpath(*parts[1 : end + 1])
                    queue += [base.with_suffix(".py"), base / "__init__.py"]
    names = {file.stem for file in seen}
    assert {"train", "separator_task", "unet", "pipeline", "records"} <= names
    assert not names & heavy


def test_no_pickle_is_executed():
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in _modules()
        for line, name in _imports(file)
        if name.split(".")[0] in ("pickle", "dill", "joblib", "shelve", "torch")
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_names_the_machine_it_was_written_on():
    """No absolute path of a developer's folders anywhere in the project."""
    folders = (PACKAGE, ROOT / "configs", ROOT / "tests", ROOT / "examples", ROOT / "launch")
    files = [
        file
        for folder in folders
        for file in folder.rglob("*")
        if file.suffix in (".py", ".md", ".json", ".sh", ".csv") and file != Path(__file__)
    ]
    wrong = [
        str(file.relative_to(ROOT))
        for file in files
        if any(path in file.read_text("utf-8") for path in (str(ROOT), "/root/", "/home/"))
    ]
    assert files and not wrong
