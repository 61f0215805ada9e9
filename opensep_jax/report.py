"""A page to hear and see what `infer` wrote: `index.html` in the output folder."""

import base64
import html
import io
import os
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from opensep_jax.data.storage import read_json, write_bytes
from opensep_jax.signal.audio import AudioError, read_audio
from opensep_jax.signal.pictures import level_image, spectrogram_db
from opensep_jax.signal.stft import Stft

_COLUMNS = 640  # pixels of a spectrogram's width at most
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { margin: 0 0 3rem; } h2 { overflow-wrap: anywhere; }
figure { display: grid; grid-template-columns: 15rem 1fr; gap: .3rem 1rem; margin: 0 0 .8rem;
  align-items: center; } figcaption { overflow-wrap: anywhere; } small { color: #767676; }
audio { width: 100%; height: 2.2rem; } img { width: 100%; height: 7rem; grid-row: span 2;
  grid-column: 2; grid-row-start: 1; border-radius: 4px; }
@media (prefers-color-scheme: dark) { body { background: #16161a; color: #e8e8ea; } }
"""


def write_report(out: Path) -> Path:
    """Writes `out/index.html` over every separation below `out`.

    Players link to the files that are there; pictures are inside the page. Inputs are linked where
    they still are.

    Returns:
        Path of the page.
    """
    folders = sorted(path.parent for path in out.rglob("separation.json"))
    sections = "\n".join(_section(folder, out) for folder in folders)
    file = out / "index.html"
    content = page("Separations", sections or "<p>Nothing here yet.</p>")
    write_bytes(file, content.encode("utf-8", "replace"))  # file names need not be UTF-8
    return file


def page(title: str, body: str) -> str:
    """A whole page of HTML.

    Args:
        title: plain text.
        body: HTML below the heading.
    """
    title = html.escape(title)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{title}</h1>{body}</body></html>\n"
    )


def player(name: str, remark: str, file: Path, out: Path) -> str:
    """HTML of a player and a picture of a sound, for a page in the folder `out`."""
    return "".join(_figures([(name, remark, file)], out))


def _section(folder: Path, out: Path) -> str:
    """One input: the mixture, its stems and the residual."""
    record = read_json(folder / "separation.json")
    caption = record.get("caption") or ""
    rows = [("mixture", f"\u201c{caption}\u201d" if caption else "", Path(record["input"]))]
    for source in record["sources"]:
        share = f"{100 * source['energy_share']:.0f} % of the energy"
        rows.append((source["name"], _remark(source, share), folder / source["file"]))
    others = (
        ("residual", "all that is left"),
        ("without", "the mixture without what was not wanted"),
    )
    rows += [(key, text, folder / record[key]["file"]) for key, text in others if record.get(key)]
    details = "{seconds:.1f} s, {sample_rate_hz} Hz, {channels} channel(s)".format(**record)
    notes = "".join(
        f"<p><small>{html.escape(note)}</small></p>" for note in record.get("notes", ())
    )
    title = html.escape(folder.relative_to(out).as_posix())
    return (
        f"<section><h2>{title}</h2><p><small>{details}</small></p>{notes}"
        f"{''.join(_figures(rows, out))}</section>"
    )


def _remark(source: dict, share: str) -> str:
    """What is known of a source besides its name."""
    told = source["prompt"].removeprefix(source["name"]).lstrip(": ")
    nearest = source["properties"].get("nearest")
    origin = f" (as of {nearest})" if nearest and nearest != source["name"] else ""
    return f"{share}; {told}{origin}" if told else share


def _figures(rows: list[tuple[str, str, Path]], out: Path) -> Iterable[str]:
    """A player and a picture for each file, all on the level scale of the first."""
    reference_db = None
    for name, remark, file in rows:
        try:
            audio = read_audio(file)
        except AudioError:
            gone = "<br><small>not there any more</small>"
            yield f"<figure><figcaption>{html.escape(name)}{gone}</figcaption></figure>"
            continue
        size = 2 * round(audio.sample_rate_hz * 0.032)
        level_db = spectrogram_db(audio.samples_CT.mean(0), Stft(size, size // 4), _COLUMNS)
        reference_db = float(level_db.max()) if reference_db is None else reference_db
        relative = os.fsencode(os.path.relpath(file, out)).replace(os.fsencode(os.sep), b"/")
        link = urllib.parse.quote(relative)
        yield (
            f"<figure><figcaption>{html.escape(name)}<br><small>{html.escape(remark)}</small>"
            f"</figcaption><audio controls preload='none' src='{link}'></audio>"
            f"<img alt='spectrogram of {html.escape(name)}' "
            f"src='{_data_url(level_image(level_db, reference_db))}'></figure>"
        )


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
