"""Scores of separation without a query: which sources are found, and how well they come out."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from opensep_jax.api import Separator
from opensep_jax.data.lists import ListedMixture, prompts, render_by
from opensep_jax.data.records import ClipEntry, PreparedDataset
from opensep_jax.discovery import Discovery
from opensep_jax.evaluation.journal import Journal
from opensep_jax.evaluation.protocol import Protocol
from opensep_jax.evaluation.tables import Estimate, bootstrap, known_mean
from opensep_jax.separation.result import drop_faint
from opensep_jax.signal.metrics import si_sdr
from opensep_jax.text.match import match_names

PENALTY_DB = -30.0  # what a missed or an invented source counts in the penalised SI-SDR
_TOGETHER = 16  # mixtures that are captioned at a time


def score_discovery(
    separator: Separator,
    discovery: Discovery,
    dataset: PreparedDataset,
    lists: Mapping[int, Sequence[ListedMixture]],
    protocol: Protocol,
    min_energy_share: float,
    journal: Journal,
    shard: int = 0,
    num_shards: int = 1,
) -> None:
    """Separates mixtures by what is heard in them, and by their true captions.

    Adds a line for each mixture to the journal: `sources`, `item`, `clips`, the caption, `said`
    and `true` names, `matched` pairs of their indices, and what `stem_scores` returns, a clip of
    several sources being one to separate; `si_sdri_true_queries` is the improvement of each clip
    when it is asked for by its caption.

    Args:
        separator: network and text encoder.
        discovery: captioner and parser.
        dataset: of the clips.
        lists: mixtures by number of sources.
        protocol: how they are made.
        min_energy_share: fainter stems stay in the residual, as in `infer`.
        journal: of this evaluation; what it has is not done again.
        shard: this process takes the groups number shard, shard + num_shards, ...
        num_shards: processes.
    """
    for count, mixtures in lists.items():
        groups = [
            range(first, min(first + _TOGETHER, len(mixtures)))
            for first in range(0, len(mixtures), _TOGETHER)
        ][shard::num_shards]
        todo = [part for part in groups if any((count, i) not in journal.lines for i in part)]
        for part in tqdm(todo, f"{count} sources, discovered", disable=None):
            group = [mixtures[item] for item in part]
            scored = _score(separator, discovery, dataset, group, protocol, min_energy_share)
            journal.add(
                {"sources": count, "item": item, **line}
                for item, line in zip(part, scored, strict=True)
            )


def _score(
    separator: Separator,
    discovery: Discovery,
    dataset: PreparedDataset,
    mixtures: Sequence[ListedMixture],
    protocol: Protocol,
    min_energy_share: float,
) -> Iterator[dict]:
    rate_hz = dataset.sample_rate_hz
    samples = round(protocol.seconds * rate_hz)
    rules = protocol.crops, protocol.levels, protocol.range_db
    sources_MST = [render_by(dataset, mixture, samples, *rules) for mixture in mixtures]
    heard = [discovery.hear(sources_ST.sum(0), rate_hz) for sources_ST in sources_MST]
    for mixture, sources_ST, found in zip(
        mixtures, sources_MST, discovery.find(heard), strict=True
    ):
        mix_1T = sources_ST.sum(0, keepdims=True)
        clips = [dataset.clips[i] for i in mixture.clips]
        captions = ["; ".join(texts) for texts in prompts(dataset, mixture, "caption")]
        named = _named(clips, captions)
        stems_KT, said = np.zeros((0, samples), np.float32), []
        if found.sources:
            separation = separator.separate(mix_1T, rate_hz, found.sources)
            separation, _ = drop_faint(separation, mix_1T, min_energy_share)
            stems_KT, said = separation.stems[:, 0], [s.name for s in separation.sources]
        wanted_ST = separator.separate(mix_1T, rate_hz, captions).stems[:, 0]
        before_S = si_sdr(mix_1T, sources_ST)
        yield {
            "clips": [clip.path for clip in clips],
            "caption": found.caption,
            "said": said,
            "true": [texts[0] for texts in named],
            "matched": match_names(said, named),
            **stem_scores(stems_KT, sources_ST, mix_1T[0]),
            "si_sdri_true_queries": _rounded(si_sdr(wanted_ST, sources_ST) - before_S),
        }


def _named(clips: Sequence[ClipEntry], captions: Sequence[str]) -> list[list[str]]:
    """Name of every source, with the caption of its clip where that has no other source."""
    return [
        [source.name, *([caption] if len(clip.sources) == 1 else [])]
        for clip, caption in zip(clips, captions, strict=True)
        for source in clip.sources
    ]


def stem_scores(
    stems_KT: np.ndarray, sources_ST: np.ndarray, mix_T: np.ndarray
) -> dict[str, object]:
    """How stems whose number and order nobody gave fit the true sources.

    Stems and sources are paired for the highest sum of SI-SDR. A stem is *nearest* to the source
    with which its SI-SDR is highest.

    Returns:
        `si_sdri` of each source in dB, 0 where it has no stem, None of a silent one, which counts
        nowhere else either; `penalised_si_sdr`: the mean SI-SDR of the pairs, in which each missed
        source and each invented stem counts PENALTY_DB (Zhu, Yeh and Hasegawa-Johnson,
        "Multi-decoder DPRNN", ICASSP 2021, arXiv 2011.12022); `over_separated`: share of the stems
        whose nearest source an earlier one has already; `under_separated`: share of the sources
        that are no stem's nearest. The shares are ours.
    """
    before_S = np.asarray(si_sdr(mix_T[None], sources_ST))
    sounding = np.flatnonzero(~np.isnan(before_S))
    stems, sources = len(stems_KT), len(sounding)
    improvement_S = np.where(np.isnan(before_S), np.nan, 0.0)
    paired, nearest = [], set()
    if stems and sources:
        score_KS = np.asarray(si_sdr(stems_KT[:, None], sources_ST[sounding][None]), np.float64)
        nearest = set(score_KS.argmax(1).tolist())
        for k, s in zip(*linear_sum_assignment(-score_KS), strict=True):
            improvement_S[sounding[s]] = score_KS[k, s] - before_S[sounding[s]]
            paired.append(score_KS[k, s])
    penalties = PENALTY_DB * abs(stems - sources)
    return {
        "si_sdri": _rounded(improvement_S),
        "penalised_si_sdr": round(float((sum(paired) + penalties) / max(1, stems, sources)), 3),
        "over_separated": (stems - len(nearest)) / max(1, stems),
        "under_separated": (sources - len(nearest)) / max(1, sources),
    }


def _rounded(values: object) -> list[float | None]:
    return [round(float(x), 3) if np.isfinite(x) else None for x in np.asarray(values)]


def summary(lines: Sequence[dict]) -> dict[str, object]:
    """Scores over mixtures of one number of sources.

    Returns:
        `Estimate`s of `precision` and `recall` of names (means over mixtures that have any),
        `count_error` (absolute) and `count_bias` (signed), `exact` (share of mixtures whose sources
        were all found and nothing else), `over_separated`, `under_separated`, `si_sdri` and the
        same with true queries, `penalised_si_sdr`; and on the `all_found` mixtures whose sources
        were all named what the missing queries cost: `loss`.
    """
    columns: dict[str, list[float]] = {}
    for line in lines:
        said, true, pairs = (len(line[k]) for k in ("said", "true", "matched"))
        wanted, got = known_mean(line["si_sdri_true_queries"]), known_mean(line["si_sdri"])
        values = {
            "precision": pairs / said if said else np.nan,
            "recall": pairs / true,
            "count_error": abs(said - true),
            "count_bias": said - true,
            "exact": float(said == true == pairs),
            "over_separated": line["over_separated"] if said else np.nan,
            "under_separated": line["under_separated"],
            "si_sdri": got,
            "si_sdri_true_queries": wanted,
            "penalised_si_sdr": line["penalised_si_sdr"],
            "loss": wanted - got if pairs == true else np.nan,
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(float(value))
    estimates: dict[str, object] = {name: bootstrap(column) for name, column in columns.items()}
    all_found = int(np.sum(~np.isnan(columns["loss"])))
    return {"mixtures": len(lines), "all_found": all_found, **estimates}


def markdown(rows: Sequence[dict]) -> str:
    """The table for people; each row is a `summary` with `sources`."""
    titles = {
        "precision": "name precision",
        "recall": "name recall",
        "count_error": "count error",
        "count_bias": "signed",
        "exact": "exact sets",
        "over_separated": "over-separated",
        "under_separated": "under-separated",
        "si_sdri": "SI-SDRi",
        "si_sdri_true_queries": "with true queries",
        "penalised_si_sdr": "penalised SI-SDR",
        "loss": "cost where all are named",
    }
    lines = [
        f"| sources | mixtures | {' | '.join(titles.values())} | all named |",
        "|---" * (3 + len(titles)) + "|",
    ]
    for row in rows:
        cells = [str(row[name]) for name in titles if isinstance(row[name], Estimate)]
        lines.append(
            f"| {row['sources']} | {row['mixtures']} | {' | '.join(cells)} | {row['all_found']} |"
        )
    return "\n".join(lines) + "\n"
