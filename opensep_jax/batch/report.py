"""A page to hear and see what `infer` wrote: `index.html` in the output folder.

It needs no network: style, script and pictures are inside; sounds are linked by relative paths.
"""

import base64
import dataclasses
import html
import io
import json
import logging
import os
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from opensep_jax import __version__
from opensep_jax.data.storage import read_json, temporary_name
from opensep_jax.signal.audio import AudioError, AudioReader, audio_info
from opensep_jax.signal.pictures import level_image, streamed_spectrogram_db
from opensep_jax.signal.stft import Stft

logger = logging.getLogger("opensep_jax")

_COLUMNS, _ROWS = 480, 96  # pixels of a spectrogram at most
_FAINT_DB = -40.0  # level of a bin from which on a file is dark as a whole
_QUALITY = 60  # of its WebP file, about 4 KB
_KEYS = (
    ("space", "play"),
    ("\u2190 \u2192", "5 s"),
    ("\u2191 \u2193", "files"),
    ("0", "solo mixture"),
    ("1 \u2026 9", "solo track"),
    ("m", "mute"),
)


@dataclasses.dataclass(frozen=True)
class Track:
    """A sound of a file on the page.

    Attributes:
        name: of it.
        file: where it is, if it still is.
        facts: a line below the name.
        prompt: what was asked for.
        known: more about it, JSON types; shown when asked for.
        is_whole: whether it holds what other tracks hold: then it is heard alone only.
    """

    name: str
    file: Path
    facts: str = ""
    prompt: str = ""
    known: Mapping[str, object] = dataclasses.field(default_factory=dict)
    is_whole: bool = False


def write_report(out: Path) -> Path:
    """Writes `out/index.html` over every separation below `out`, in little memory.

    Players link to the files that are there; pictures are inside the page. Inputs are linked where
    they still are. A record that cannot be read is left out, with a warning.

    Returns:
        Path of the page.
    """
    folders = sorted(path.parent for path in out.rglob("separation.json"))
    file = out / "index.html"
    write_page(file, "Separations", _sections(folders, out))
    return file


def write_page(file: Path, title: str, sections: Iterable[str]) -> None:
    """Writes a page of sections, one after the other; it appears when it is whole.

    Args:
        file: of the page.
        title: plain text.
        sections: of `section`.
    """
    assets = resources.files("opensep_jax").joinpath("assets/report")
    style = assets.joinpath("style.css").read_text("utf-8")
    script = assets.joinpath("script.js").read_text("utf-8")
    keys = " ".join(f"<span><kbd>{key}</kbd> {text}</span>" for key, text in _KEYS)
    temporary = temporary_name(file)
    try:
        with temporary.open("w", encoding="utf-8", errors="replace") as page:  # names: any bytes
            page.write(_head(title, style, keys))
            count = 0
            for part in sections:
                page.write(part)
                count += 1
            nothing = "" if count else "<p>Nothing here yet.</p>"
            page.write(
                f"{nothing}</main>\n<footer>opensep_jax {__version__}, {count} files</footer>\n"
                f"<script>\n{script}</script></body></html>\n"
            )
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _head(title: str, style: str, keys: str) -> str:
    """HTML up to the first section."""
    title = html.escape(title)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><title>{title}</title>\n<style>\n{style}</style></head>\n"
        f"<body><h1>{title}</h1><div class='bar' role='search'><input type='search' id='find' "
        "placeholder='Find' aria-label='Find files by name, caption or source'>"
        f"<span id='count' role='status'></span>{keys}</div>\n"
        "<noscript><p>Playing together needs JavaScript; the links to the files do not.</p>"
        "</noscript>\n<main>\n"
    )


def section(
    number: int,
    title: str,
    tracks: Sequence[Track],
    out: Path,
    *,
    facts: str = "",
    caption: str = "",
    notes: Iterable[str] = (),
    details: Mapping[str, Mapping[str, object]] | None = None,
) -> str:
    """HTML of one file: what it is, a player of all its tracks, and their pictures.

    Args:
        number: of the section on its page.
        title: plain text, like all that follows.
        tracks: the first has the length and the scale of levels of the others.
        out: folder of the page.
        facts: a line below the title.
        caption: what is heard.
        notes: what the user should know.
        details: tables by title, shown when asked for.
    """
    rows, seconds = _rows(tracks, out)
    name, anchor = html.escape(title), f"file-{number}"
    told = f"<p class='caption'>\u201c{html.escape(caption)}\u201d</p>" if caption else ""
    told += "".join(f"<p class='note'>{html.escape(note)}</p>" for note in notes)
    tables = "".join(_details(key, table) for key, table in (details or {}).items() if table)
    off = "" if seconds else " disabled"
    return (
        f"<section class='file' id='{anchor}' aria-labelledby='{anchor}-name' "
        f"data-seconds='{seconds:.6f}'><h2 id='{anchor}-name'>{name}</h2>"
        f"<p class='facts'>{html.escape(facts)}</p>{told}"
        f"<div class='transport'><button type='button' class='play' "
        f"aria-describedby='{anchor}-name'{off}>Play</button>"
        f"<input type='range' class='seek' min='0' max='{seconds:.6f}' step='any' value='0' "
        f"aria-label='Position in {name}'{off}><output>00:00</output></div>"
        f"<ol class='tracks'>{rows}</ol>{tables}</section>\n"
    )


def _sections(folders: Iterable[Path], out: Path) -> Iterator[str]:
    for number, folder in enumerate(folders, 1):
        try:
            yield _separation(number, folder, read_json(folder / "separation.json"), out)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is not on the page: %r", folder / "separation.json", error)


def _separation(number: int, folder: Path, record: dict, out: Path) -> str:
    """One input: the mixture, its stems and the residual."""
    tracks = []
    if record.get("input"):
        mixture = Path(record.get("input_path", record["input"]))
        tracks.append(Track("mixture", mixture, "the input", is_whole=True))
    tracks += [_stem(source, folder) for source in record["sources"]]
    if record.get("residual"):
        tracks.append(Track("residual", folder / record["residual"]["file"], "all that is left"))
    if others := record.get("without"):
        names = ", ".join(others.get("names", ()))
        tracks.append(Track("without", folder / others["file"], f"no {names}", is_whole=True))
    timings = record.get("timings_s", {})
    return section(
        number,
        folder.relative_to(out).as_posix(),
        tracks,
        out,
        facts="{seconds:.1f} s, {sample_rate_hz} Hz, {channels} channel(s)".format(**record),
        caption=record.get("caption") or "",
        notes=record.get("notes", ()),
        details={
            "Timings": {key: f"{value:.2f} s" for key, value in timings.items()},
            "Models": record.get("models", {}) | {"opensep_jax": record.get("version", "")},
        },
    )


def _stem(source: dict, folder: Path) -> Track:
    """The track of a source."""
    facts = f"{100 * source['energy_share']:.0f} % of the energy"
    if "confidence" in source:
        facts += f", confidence {source['confidence']:.2f}"
    signs = {key: source[key] for key in ("overlap", "agreement") if source.get(key) is not None}
    known = source["properties"] | signs
    return Track(source["name"], folder / source["file"], facts, source["prompt"], known)


def _rows(tracks: Sequence[Track], out: Path) -> tuple[str, float]:
    """HTML of the tracks, and the seconds of the first that is there; pictures on its scale."""
    rows, seconds, reference_db = [], 0.0, None
    first_key = 0 if tracks and tracks[0].is_whole else 1
    for key, track in enumerate(tracks, first_key):
        try:
            level_db, length_s, rate_hz = _levels(track.file)
        except AudioError as error:
            gone = "cannot be read" if track.file.exists() else "not there any more"
            logger.info("%s", error)
            rows.append(_row(track, key, None, "", gone))
            continue
        seconds = seconds or length_s
        if reference_db is None:
            reference_db = max(float(level_db.max()), _FAINT_DB)
        picture = (
            f"<img alt='Spectrogram of {html.escape(track.name)}' width='{_COLUMNS}' "
            f"height='{_ROWS}' data-src='{_data_url(level_image(level_db, reference_db, _ROWS))}'>"
            f"<span>{rate_hz / 2000:g} kHz</span>"
        )
        rows.append(_row(track, key, _link(track.file, out), picture, ""))
    return "".join(rows), seconds


def _row(track: Track, key: int, link: str | None, picture: str, told: str) -> str:
    """HTML of a track; without a link it is not there."""
    name = html.escape(track.name)
    source, off = ("", " disabled") if link is None else (f" data-src='{link}'", "")
    hint = f" <kbd>{key}</kbd>" if key < 10 else ""
    to_file = "" if link is None else f"<a href='{link}' aria-label='File of {name}'>file</a>"
    solo = "true" if track.is_whole and key == 0 and link is not None else "false"
    return (
        f"<li class='track' data-key='{key}'{source}{' data-whole' if track.is_whole else ''}>"
        f"<div class='name'>{name}{hint}<small>{html.escape(track.facts)}</small>"
        f"<small class='told' role='status'>{told}</small></div><div class='switches'>"
        f"<button type='button' class='solo' aria-pressed='{solo}' aria-label='Solo {name}' "
        f"title='Solo; with Shift besides others'{off}>S</button>"
        f"<button type='button' class='mute' aria-pressed='false' aria-label='Mute {name}' "
        f"title='Mute'{off}>M</button>{to_file}</div><div class='picture'>{picture}</div>"
        f"{_details(track.prompt, track.known) if track.prompt else ''}</li>"
    )


def _details(title: str, table: Mapping[str, object]) -> str:
    """A table that opens."""
    rows = "".join(
        f"<dt>{html.escape(key.replace('_', ' '))}</dt><dd>{html.escape(_text(value))}</dd>"
        for key, value in table.items()
    )
    return f"<details><summary>{html.escape(title)}</summary><dl>{rows}</dl></details>"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _levels(file: Path) -> tuple[np.ndarray, float, int]:
    """Spectrogram in dB, seconds and sample rate of a file, which is read block by block."""
    info = audio_info(file)
    size = 2 * max(8, round(info.sample_rate_hz * 0.032))
    with AudioReader(file) as reader:
        blocks = (block_CT.mean(0) for block_CT in reader.blocks())
        level_db = streamed_spectrogram_db(blocks, info.frames, Stft(size, size // 4), _COLUMNS)
    return level_db, info.seconds, info.sample_rate_hz


def _link(file: Path, out: Path) -> str:
    """Relative URL of a file for a page in a folder; names may be any bytes."""
    relative = os.fsencode(os.path.relpath(file, out)).replace(os.fsencode(os.sep), b"/")
    return urllib.parse.quote(relative)


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
