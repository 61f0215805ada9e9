"""What a run reports: TensorBoard events and a JSON-lines copy, written by process 0 only."""

import io
import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from etils import epath
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from opensep_jax.training.panels import Exhibit

_LINES = "metrics.jsonl"


class Board:
    """Writes scalars, sounds and pictures under a workdir; does nothing unless `active`.

    Everything is on disk when a call returns. A disk that is full is an `OSError` with the file.
    Object stores cannot append to files: what belongs there is on the local disk until `publish`.

    Attributes:
        folder: where files are written; the workdir, if that is local.
    """

    def __init__(self, workdir: Path | epath.Path, first_step: int = 0, active: bool = True):
        """Opens `events.*` and `metrics.jsonl` to go on after `first_step`.

        What an earlier process wrote for later steps is dropped: from `metrics.jsonl` here, from
        the events by TensorBoard when it reads them.
        """
        self._active, self._remote, self.folder = active, None, workdir
        self._published: dict[Path, tuple[int, int]] = {}  # size and time of change
        if not active:
            return
        if not isinstance(workdir, Path):
            self._remote, self.folder = workdir, Path(tempfile.mkdtemp(prefix="opensep-"))
            if (workdir / _LINES).exists():
                (self.folder / _LINES).write_bytes((workdir / _LINES).read_bytes())
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = self.folder / _LINES
        _drop_lines_after(first_step, lines)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._lines = lines.open("ab", buffering=0)
        self._events = (self.folder / name).open("ab", buffering=0)
        self._add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        session = SessionLog(status=SessionLog.START)
        self._add_event(Event(wall_time=time.time(), step=first_step + 1, session_log=session))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Plain numbers by name."""
        if not self._active:
            return
        line = json.dumps({"step": step, "time": time.time(), **values}) + "\n"
        _write(self._lines, line.encode())
        self._add(step, [Summary.Value(tag=k, simple_value=v) for k, v in values.items()])

    def audio(self, step: int, name: str, wave_T: np.ndarray, sample_rate_hz: int) -> None:
        """A sound to play."""
        if not self._active:
            return
        buffer = io.BytesIO()
        peak = max(1.0, float(np.abs(wave_T).max()))
        soundfile.write(buffer, wave_T / peak, sample_rate_hz, format="WAV", subtype="PCM_16")
        sound = Summary.Audio(
            sample_rate=sample_rate_hz, num_channels=1, length_frames=len(wave_T),
            encoded_audio_string=buffer.getvalue(), content_type="audio/wav",
        )  # fmt: skip
        self._add(step, [Summary.Value(tag=name, audio=sound)])

    def exhibit(self, step: int, name: str, exhibit: Exhibit) -> None:
        """Sounds, pictures and texts of a validation, their names after `name` and a slash."""
        for sound, wave_T in exhibit.sounds.items():
            self.audio(step, f"{name}/{sound}", wave_T, exhibit.sample_rate_hz)
        for picture, image in exhibit.pictures.items():
            self.image(step, f"{name}/{picture}", image)
        for title, markdown in exhibit.texts.items():
            self.text(step, f"{name}/{title}", markdown)

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture."""
        if not self._active:
            return
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        image = Summary.Image(
            width=picture.width, height=picture.height, encoded_image_string=buffer.getvalue()
        )
        self._add(step, [Summary.Value(tag=name, image=image)])

    def text(self, step: int, name: str, markdown: str) -> None:
        """Text in the tab of that name."""
        if not self._active:
            return
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=name, metadata=metadata)
        value.tensor.dtype = 7  # DT_STRING
        value.tensor.tensor_shape.dim.add(size=1)
        value.tensor.string_val.append(markdown.encode())
        self._add(step, [value])

    def hparams(self, step: int, values: dict[str, object]) -> None:
        """Hyper-parameters by name, for the tab that compares runs by them."""
        if not self._active:
            return
        plain = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in values.items()}
        self._add(step, list(hparams_pb(plain).value))

    def publish(self) -> None:
        """Copies what is new or has changed to the object store, if the workdir is in one."""
        if self._remote is None:
            return
        for file in sorted(self.folder.rglob("*")):
            stat = file.stat()
            state = stat.st_size, stat.st_mtime_ns
            if file.is_file() and self._published.get(file) != state:
                copy = self._remote / file.relative_to(self.folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
                self._published[file] = state

    def close(self) -> None:
        """Closes the files."""
        if self._active:
            self._events.close()
            self._lines.close()
        self.publish()
        if self._remote is not None:
            shutil.rmtree(self.folder)

    def _add(self, step: int, values: list[Summary.Value]) -> None:
        self._add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _add_event(self, event: Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        _write(self._events, record.getvalue())


def _write(file: io.FileIO, data: bytes) -> None:
    """Appends everything to an unbuffered file."""
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def _drop_lines_after(step: int, file: Path) -> None:
    """Keeps the lines of steps up to `step`, and drops one that a kill cut short."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text("".join(kept))
    temporary.replace(file)
