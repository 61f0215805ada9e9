"""Scores of separation without a query: which sources are found, and how well they come out."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from opensep_jax.api import Separation, Separator
from opensep_jax.data.lists import ListedMixture, render, text_ids
from opensep_jax.data.records import PreparedDataset
from opensep_jax.discovery import Discovery
from opensep_jax.separation import drop_faint
from opensep_jax.signal.metrics import si_sdr
from opensep_jax.text.match import match_names
from opensep_jax.training.validation import mean_and_error

_TOGETHER = 16  # mixtures that are captioned at a time


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How mixtures are made and what counts as found.

    Attributes:
        seconds: length of a mixture.
        level_db: levels around equal RMS, +-.
        min_energy_share: fainter stems stay in the residual, as in `infer`.
    """

    seconds: float
    level_db: float
    min_energy_share: float


def score_discovery(
    separator: Separator,
    discovery: Discovery,
    dataset: PreparedDataset,
    mixtures: Sequence[ListedMixture],
    protocol: Protocol,
) -> list[dict]:
    """Separates mixtures by what is heard in them, and by their true captions.

    Returns:
        For each mixture the caption, `said` and `true` names, `matched` pairs of their indices,
        `si_sdri` in dB of each true source (stems and sources paired for the highest sum; a source
        without a stem counts as 0 dB) and `si_sdri_true_queries`.
    """
    items = []
    with tqdm(total=len(mixtures), desc="discovery", disable=None) as bar:
        for first in range(0, len(mixtures), _TOGETHER):
            part = mixtures[first : first + _TOGETHER]
            for item in _score(separator, discovery, dataset, part, protocol):
                items.append(item)
                bar.update()
    return items


def _score(
    separator: Separator,
    discovery: Discovery,
    dataset: PreparedDataset,
    mixtures: Sequence[ListedMixture],
    protocol: Protocol,
) -> Iterator[dict]:
    rate_hz = dataset.sample_rate_hz
    samples = round(protocol.seconds * rate_hz)
    sources_MST = [render(dataset, mixture, samples, protocol.level_db) for mixture in mixtures]
    heard = [discovery.hear(sources_ST.sum(0), rate_hz) for sources_ST in sources_MST]
    for mixture, sources_ST, found in zip(
        mixtures, sources_MST, discovery.find(heard), strict=True
    ):
        mix_1T = sources_ST.sum(0, keepdims=True)
        clips = [dataset.clips[i] for i in mixture.clips]
        true = [dataset.text.prompts[i] for i in text_ids(dataset, mixture, "caption")]
        names = [[clip.sources[0].name, caption] for clip, caption in zip(clips, true, strict=True)]
        stems_KT, said = np.zeros((0, samples), np.float32), []
        if found.sources:
            separation = separator.separate(mix_1T, rate_hz, found.sources)
            separation, _ = drop_faint(separation, mix_1T, protocol.min_energy_share)
            stems_KT, said = separation.stems[:, 0], [s.name for s in separation.sources]
        wanted: Separation = separator.separate(mix_1T, rate_hz, true)
        yield {
            "clips": [clip.path for clip in clips],
            "caption": found.caption,
            "said": said,
            "true": [own[0] for own in names],
            "matched": match_names(said, names),
            "si_sdri": _matched_improvement(stems_KT, sources_ST, mix_1T[0]),
            "si_sdri_true_queries": _improvement(wanted.stems[:, 0], sources_ST, mix_1T[0]),
        }


def _improvement(stems_ST: np.ndarray, sources_ST: np.ndarray, mix_T: np.ndarray) -> list[float]:
    """SI-SDR improvement in dB of stems in the order of their sources."""
    before_S = si_sdr(mix_T[None], sources_ST)
    return [round(float(x), 3) for x in np.asarray(si_sdr(stems_ST, sources_ST) - before_S)]


def _matched_improvement(
    stems_KT: np.ndarray, sources_ST: np.ndarray, mix_T: np.ndarray
) -> list[float]:
    """SI-SDR improvement in dB of each source by its best stem, each used once; else 0."""
    improvement_S = [0.0] * len(sources_ST)
    if len(stems_KT):
        gain_KS = np.asarray(si_sdr(stems_KT[:, None], sources_ST[None]))
        gain_KS = gain_KS - np.asarray(si_sdr(mix_T[None], sources_ST))
        for k, s in zip(*linear_sum_assignment(-gain_KS), strict=True):
            improvement_S[s] = round(float(gain_KS[k, s]), 3)
    return improvement_S


def summary(items: Sequence[dict]) -> dict[str, float]:
    """Scores over mixtures of one number of sources.

    Returns:
        `precision` and `recall` of names, `count_error` (mean absolute), `exact` (share of mixtures
        whose sources were all found and nothing else), `si_sdri_db` with its standard error, the
        same with true queries, and on the `all_found` mixtures whose sources were all named what
        the missing queries cost: `loss_db`.
    """
    pairs = sum(len(item["matched"]) for item in items)
    found = [item for item in items if len(item["matched"]) == len(item["true"])]
    counts = [abs(len(item["said"]) - len(item["true"])) for item in items]
    si_sdri, error = mean_and_error([item["si_sdri"] for item in items])
    wanted, wanted_error = mean_and_error([item["si_sdri_true_queries"] for item in items])
    losses = [np.mean(item["si_sdri_true_queries"]) - np.mean(item["si_sdri"]) for item in found]
    return {
        "mixtures": len(items),
        "precision": pairs / max(1, sum(len(item["said"]) for item in items)),
        "recall": pairs / sum(len(item["true"]) for item in items),
        "count_error": float(np.mean(counts)),
        "exact": sum(len(item["said"]) == len(item["true"]) for item in found) / len(items),
        "si_sdri_db": si_sdri,
        "si_sdri_error_db": error,
        "si_sdri_true_queries_db": wanted,
        "si_sdri_true_queries_error_db": wanted_error,
        "all_found": len(found),
        "loss_db": float(np.mean(losses)) if losses else float("nan"),
    }


def markdown(rows: Sequence[dict]) -> str:
    """The table for people; each row is a `summary` with `sources`."""
    lines = [
        "| sources | name precision | recall | count error | exact | SI-SDR improvement (dB) | "
        "with true queries | all named | loss there (dB) |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        lines.append(
            f"| {row['sources']} | {row['precision']:.2f} | {row['recall']:.2f} | "
            f"{row['count_error']:.2f} | {row['exact']:.2f} | "
            f"{row['si_sdri_db']:.2f} +- {row['si_sdri_error_db']:.2f} | "
            f"{row['si_sdri_true_queries_db']:.2f} +- {row['si_sdri_true_queries_error_db']:.2f} | "
            f"{row['all_found']} of {row['mixtures']} | {row['loss_db']:.2f} |"
        )
    return "\n".join(lines) + "\n"
