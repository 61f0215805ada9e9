"""Contestants on the same mixtures: a table with paired differences, and a plot with intervals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from opensep_jax.evaluation.tables import Estimate, bootstrap, known_mean

# By contestant, number of sources and measure: a value for each mixture, the same ones for all.
Values = Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]


def improvements(
    lines: Sequence[dict], wanted: Mapping[str, str]
) -> dict[int, dict[str, list[float]]]:
    """SI-SDR improvement of each mixture in the rows that are wanted, by number of sources.

    Args:
        lines: items of `evaluate`, with the baseline `mixture`.
        wanted: what a row has to say of itself, such as its `query`.
    """
    found: dict[int, dict[str, list[float]]] = {}
    for line in lines:
        before = next(row["si_sdr"] for row in line["scores"] if row["system"] == "mixture")
        for row in line["scores"]:
            if wanted.items() <= row.items():
                gain = known_mean(row["si_sdr"]) - known_mean(before)
                found.setdefault(line["sources"], {}).setdefault("SI-SDRi", []).append(gain)
    return found


def mean_of(runs: Sequence[Mapping[int, Mapping[str, Sequence[float]]]]) -> dict:
    """One contestant out of several seeds: the mean of each mixture over them."""
    return {
        count: {
            measure: np.mean([run[count][measure] for run in runs], axis=0).tolist()
            for measure in measures
        }
        for count, measures in runs[0].items()
    }


def write(out: Path, question: str, values: Values, title: str, command: str) -> None:
    """Writes `out/<question>.md`, `.json` and `.png`, and prints the table.

    Args:
        out: folder.
        question: name of the files.
        values: what was measured; the first measure is plotted, and all contestants are compared
            with the first one, mixture by mixture.
        title: what is asked.
        command: that repeats it.
    """
    rows = [
        {"contestant": name, "sources": count, "mixtures": len(next(iter(measures.values())))}
        | {m: (bootstrap(v), _difference(v, values, count, m)) for m, v in measures.items()}
        for name, by_count in values.items()
        for count, measures in by_count.items()
    ]
    measures = list(dict.fromkeys(m for row in rows for m, v in row.items() if _is_pair(v)))
    first = next(iter(values))
    heads = [part for m in measures for part in (m, f"less that of {first}")]
    lines = [
        f"{title} Mean over mixtures and 95 % bootstrap interval; differences are paired.",
        "", f"`{command}`", "",
        f"| contestant | sources | mixtures | {' | '.join(heads)} |",
        "|---" * (3 + len(heads)) + "|",
    ]  # fmt: skip
    for row in sorted(rows, key=lambda row: row["sources"]):
        cells = [str(part) for m in measures for part in row.get(m, ("", ""))]
        told = [str(row[key]) for key in ("contestant", "sources", "mixtures")]
        lines.append(f"| {' | '.join(told + cells)} |")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{question}.md").write_text("\n".join(lines) + "\n")
    (out / f"{question}.json").write_text(json.dumps(_plain(rows), indent=1) + "\n")
    _plot(out / f"{question}.png", values, measures[0], title)
    print("\n".join(lines))


def _difference(own: Sequence[float], values: Values, count: int, measure: str) -> Estimate:
    """From the first contestant, on the mixtures that both have."""
    first = next(iter(values.values())).get(count, {}).get(measure)
    if first is None or len(first) != len(own) or first is own:
        return Estimate(np.nan, np.nan, np.nan)
    return bootstrap(np.subtract(own, first))


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple)


def _plain(rows: Sequence[dict]) -> list[dict]:
    """Rows as JSON: mean, low and high of each measure and of its difference."""
    return [
        {
            k: [[None if np.isnan(x) else round(x, 4) for x in (e.mean, e.low, e.high)] for e in v]
            if _is_pair(v)
            else v
            for k, v in row.items()
        }
        for row in rows
    ]


def _plot(file: Path, values: Values, measure: str, title: str) -> None:
    """The measure over the number of sources, contestants side by side."""
    figure, axes = plt.subplots(figsize=(8, 5))
    for place, (name, by_count) in enumerate(values.items()):
        shift = 0.6 * ((place + 0.5) / len(values) - 0.5)
        estimates = [bootstrap(measures[measure]) for measures in by_count.values()]
        means = np.array([estimate.mean for estimate in estimates])
        span = np.array([[m - e.low, e.high - m] for m, e in zip(means, estimates, strict=True)])
        axes.errorbar(np.array(list(by_count)) + shift, means, span.T, fmt="o", capsize=3,
                      label=name)  # fmt: skip
    axes.set(xlabel="sources of a mixture", ylabel=f"{measure}, 95 % interval", title=title)
    axes.set_xticks(sorted({count for by_count in values.values() for count in by_count}))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120, bbox_inches="tight")
    plt.close(figure)
