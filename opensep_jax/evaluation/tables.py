"""Items to tables: improvements over the mixture, means with bootstrap intervals, files."""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from opensep_jax.signal.measures import improvement

RESAMPLES = 1000
_TITLES = {
    "si_sdri": "SI-SDRi",
    "snri": "SNRi",
    "bss_sources_512_sdri": "SDRi (sources)",
    "bss_sources_512_sdr": "SDR (sources)",
    "bss_sources_512_sir": "SIR",
    "bss_sources_512_sar": "SAR",
    "bss_images_512_sdri": "SDRi (images)",
    "spectral_overlap": "overlap",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with the interval that 95 % of bootstrap resamples fall into.

    Attributes:
        mean: of the values; NaN where there are none.
        low: 2.5th percentile.
        high: 97.5th percentile.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return "" if np.isnan(self.mean) else f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(
    values_M: Sequence[float], aggregate: str = "mean", classes_M: Sequence[str] | None = None
) -> Estimate:
    """An aggregate of mixtures, and what resampling the mixtures leaves open.

    Mixtures that share clips count as independent, so intervals are a little too narrow.

    Args:
        values_M: one for each mixture; NaN ones are left out.
        aggregate: `mean`, or the mean of `class_means` or `class_medians`.
        classes_M: of the mixtures, for the last two.

    Source: percentile bootstrap, Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    values = np.asarray(values_M, np.float64)
    known = ~np.isnan(values)
    values = values[known]
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    index_RM = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    if aggregate == "mean":
        whole, resampled = values.mean(), values[index_RM].mean(1)
    else:
        classes = np.unique(np.asarray(classes_M)[known], return_inverse=True)[1]
        middle = np.mean if aggregate == "class_means" else np.median
        whole = _by_class(values, classes, middle)
        resampled = [_by_class(values[row], classes[row], middle) for row in index_RM]
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(float(whole), float(low), float(high))


def _by_class(values: np.ndarray, classes: np.ndarray, middle: object) -> float:
    return float(np.mean([middle(values[classes == c]) for c in np.unique(classes)]))


def with_improvements(lines: Iterable[dict]) -> list[dict]:
    """Lines of `scores.score_lists` whose figures include the improvements over the mixture."""
    return [
        line | {"scores": [_improved(row, _mixture_row(line)) for row in line["scores"]]}
        for line in lines
    ]


def _mixture_row(line: dict) -> dict:
    return next((row for row in line["scores"] if row["system"] == "mixture"), {})


def _improved(row: dict, mixture: dict) -> dict:
    new = {}
    for figure, values in row.items():
        name = improvement(figure)
        if name and figure in mixture:
            pairs = zip(values, mixture[figure], strict=True)
            new[name] = [None if None in pair else round(pair[0] - pair[1], 3) for pair in pairs]
    return row | new


def summarise(
    lines: Sequence[dict], aggregate: str, scored: str, silence: str
) -> list[dict[str, object]]:
    """Rows of the table: for each number of sources, system, query and mask rule.

    Args:
        lines: of `with_improvements`.
        aggregate: see `bootstrap`; the class of a mixture is the name of its first source.
        scored: `all`: the value of a mixture is the mean over its sources; `first`: the first's.
        silence: `published` leaves out mixtures that do not count there.

    Returns:
        Rows with `sources`, `group` (`all`, and `seen` and `unseen` where both occur), `system`,
        `query`, `masks`, `mixtures` (that have such sources), `left_out`, and an `Estimate` by
        figure.
    """
    groups: dict[tuple, list[tuple[dict, dict]]] = {}
    for line in lines:
        for row in line["scores"]:
            key = line["sources"], row["system"], row["query"], row["masks"]
            groups.setdefault(key, []).append((line, row))
    kinds = {kind for line in lines for kind in line.get("seen", ())}
    rows = []
    for (sources, system, query, masks), members in groups.items():
        counted = [m for m in members if silence != "published" or m[1]["counts"]]
        for group in ("all", *(("seen", "unseen") if len(kinds) == 2 else ())):
            own = [(line, r) for line, r in counted if _scored(line, group, scored)]
            row = {
                "sources": sources, "group": group, "system": system, "query": query,
                "masks": masks, "mixtures": len(own), "left_out": len(members) - len(counted),
            }  # fmt: skip
            figures = [k for k, v in members[0][1].items() if isinstance(v, list)]
            classes = [line["names"][0] for line, _ in own]
            for figure in figures:
                values = [_value(r[figure], _scored(line, group, scored)) for line, r in own]
                row[figure] = bootstrap(values, aggregate, classes)
            rows.append(row)
    return sorted(rows, key=lambda row: row["sources"])


def _scored(line: dict, group: str, scored: str) -> list[int]:
    """Sources of a mixture that are scored and of a group."""
    places = range(1 if scored == "first" else len(line["names"]))
    return [s for s in places if group == "all" or line["seen"][s] == (group == "seen")]


def _value(values_S: Sequence[float | None], places: Sequence[int]) -> float:
    """Mean over these sources, as far as there is a figure of them; else NaN."""
    return known_mean([values_S[s] for s in places])


def known_mean(values: Sequence[float | None]) -> float:
    """Mean of those that are not None, as the figures of silent sources are; NaN without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else np.nan


def flat(rows: Sequence[dict]) -> list[dict]:
    """Rows with plain numbers for JSON and CSV: `figure`, `figure_low` and `figure_high`."""
    found = []
    for row in rows:
        plain = {k: v for k, v in row.items() if not isinstance(v, Estimate)}
        for name, estimate in row.items():
            if isinstance(estimate, Estimate):
                for suffix, part in (("", "mean"), ("_low", "low"), ("_high", "high")):
                    value = getattr(estimate, part)
                    plain[name + suffix] = None if np.isnan(value) else round(value, 4)
        found.append(plain)
    return found


def write_csv(file: Path, rows: Sequence[dict]) -> None:
    """Writes `flat` rows; a figure that a row lacks is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: Sequence[dict], headline: str) -> str:
    """The table for people: the headline figure and the others that have a title."""
    present = {name for row in rows for name, v in row.items() if isinstance(v, Estimate)}
    shown = [headline, *(n for n in _TITLES if n in present and n != headline)]
    if "bss_sources_512_sdri" in shown and headline != "bss_sources_512_sdr":
        shown = [name for name in shown if name != "bss_sources_512_sdr"]
    titles = [_TITLES.get(name, name) for name in shown]
    grouped = len({row["group"] for row in rows}) > 1
    partial = any(row["left_out"] for row in rows)
    head = ["sources", *(["classes"] if grouped else []), "system", "query", "masks", "mixtures"]
    head += ["left out"] if partial else []
    lines = [f"| {' | '.join([*head, *titles])} |", "|---" * (len(head) + len(shown)) + "|"]
    for row in rows:
        cells = [row["sources"], *([row["group"]] if grouped else [])]
        cells += [row["system"], row["query"], row["masks"], row["mixtures"]]
        cells += [row["left_out"]] if partial else []
        cells += [row.get(name, "") for name in shown]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
