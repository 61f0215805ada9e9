"""Scores of systems on lists of mixtures, batch by batch; what a journal has is not done again."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from tqdm import tqdm

from opensep_jax.data.lists import ListedMixture, render_by
from opensep_jax.data.records import PreparedDataset
from opensep_jax.evaluation.journal import Journal
from opensep_jax.evaluation.protocol import Protocol
from opensep_jax.evaluation.queries import Queries
from opensep_jax.evaluation.systems import System, baseline_stems
from opensep_jax.sharding import batch_sharding, place
from opensep_jax.signal.measures import measure
from opensep_jax.signal.stems import counts_in_published_scores, is_silent
from opensep_jax.text.match import match_names


def score_lists(
    queries: Queries,
    lists: Mapping[int, Sequence[ListedMixture]],
    protocol: Protocol,
    systems: Sequence[System],
    baselines: Sequence[str],
    journal: Journal,
    *,
    mesh: jax.sharding.Mesh,
    batch: int,
    shard: int = 0,
    num_shards: int = 1,
    seen: frozenset[str] | None = None,
) -> None:
    """Adds a line for each mixture to a journal.

    A line has `sources`, `item`, the `clips` and `names` of the mixture, `seen` (whether each name
    is among those of a training set) and `scores`: for each system, query and mask rule the
    figures of the sources, and whether the `silence` rule of published scores counts the mixture.

    Args:
        queries: of the clips.
        lists: mixtures by number of sources.
        protocol: how they are made and scored.
        systems: checkpoints.
        baselines: of `systems.BASELINES`.
        journal: of this evaluation.
        mesh: whose devices share a batch.
        batch: mixtures at a time; every run forms the same batches, so a rerun repeats figures.
        shard: this process takes the batches number shard, shard + num_shards, ...
        num_shards: processes.
        seen: names in the training set, if it is known; by `text.match`, not by spelling.
    """
    for count, mixtures in lists.items():
        parts = [
            range(first, min(first + batch, len(mixtures)))
            for first in range(0, len(mixtures), batch)
        ][shard::num_shards]
        todo = [part for part in parts if any((count, i) not in journal.lines for i in part)]
        lengths = {kind: queries.length(mixtures, kind) for kind in protocol.wordings if todo}
        for part in tqdm(todo, f"{count} sources", disable=None):
            rows = [mixtures[item] for item in [*part, *[part[0]] * (batch - len(part))]]
            scores = _score_batch(queries, rows, lengths, protocol, systems, baselines, mesh)
            lines = []
            for position, item in enumerate(part):
                line = {"sources": count, "item": item}
                line |= _described(queries.dataset, mixtures[item], seen)
                line["scores"] = [
                    row | {k: _rounded(v[position]) for k, v in found.items()}
                    for row, found in scores
                ]
                lines.append(line)
            journal.add(lines)


def _score_batch(
    queries: Queries,
    mixtures: Sequence[ListedMixture],
    lengths: Mapping[str, int],
    protocol: Protocol,
    systems: Sequence[System],
    baselines: Sequence[str],
    mesh: jax.sharding.Mesh,
) -> list[tuple[dict, dict[str, np.ndarray]]]:
    """Figures [B, S] of a batch, for each row of the table."""
    dataset, rows = queries.dataset, batch_sharding(mesh)
    samples = round(protocol.seconds * dataset.sample_rate_hz)
    rules = protocol.crops, protocol.levels, protocol.range_db
    rendered = [render_by(dataset, mixture, samples, *rules) for mixture in mixtures]
    sources_BST = place(np.stack(rendered), rows)
    figures_of = functools.partial(
        figures, sources_BST=sources_BST, mesh=mesh, energy_rule=protocol.silence == "energy"
    )
    found = []
    for name in baselines:
        row = {"system": name, "query": "", "masks": ""}
        stems_BST = baseline_stems(sources_BST, name)
        found.append((row, figures_of(stems_BST, names=protocol.measures)))
    if "spectral_overlap" in protocol.measures:  # what there is to compare that of stems with
        row = {"system": "sources", "query": "", "masks": ""}
        found.append((row, figures_of(sources_BST, names=("spectral_overlap",))))
    for system in systems:
        if system.blind and system.outputs < sources_BST.shape[1]:
            continue  # more sources than it can tell apart
        for query in ("",) if system.blind else protocol.wordings:
            texts = queries.padded(mixtures, query, lengths[query]) if query else {}
            texts = place(texts, rows)
            stems = system.separate(sources_BST, texts, protocol.masks)
            for masks, stems_BST in stems.items():
                row = {"system": system.name, "query": query, "masks": masks}
                found.append((row, figures_of(stems_BST, names=protocol.measures)))
    return found


def figures(
    stems_BST: jax.Array,
    sources_BST: jax.Array,
    names: tuple[str, ...],
    mesh: jax.sharding.Mesh,
    energy_rule: bool = False,
) -> dict[str, np.ndarray]:
    """Figures [B, S] of the named measures, and `counts` [B], on the host.

    With `energy_rule` they are NaN where the source is silent by `stems.is_silent`.
    """
    found = _measured(mesh, names)(stems_BST, sources_BST)
    if energy_rule:
        silent_BS = is_silent(sources_BST)
        found = {name: jnp.where(silent_BS, jnp.nan, value) for name, value in found.items()}
    counts_B = counts_in_published_scores(stems_BST, sources_BST)
    return jax.device_get({**found, "counts": counts_B})


@functools.cache
def _measured(mesh: jax.sharding.Mesh, names: tuple[str, ...]) -> object:
    """`measure`, each device on its own rows; where there is no float64 the host computes."""
    if jax.default_backend() == "tpu":
        return functools.partial(measure, names=names)
    rows = PartitionSpec(("data", "fsdp"))
    split = jax.shard_map(
        functools.partial(measure, names=names), mesh=mesh, in_specs=rows, out_specs=rows,
        check_vma=False,
    )  # fmt: skip
    return jax.jit(split)


def _described(
    dataset: PreparedDataset, mixture: ListedMixture, seen: frozenset[str] | None
) -> dict:
    clips = [dataset.clips[index] for index in mixture.clips]
    names = [[source.name for source in clip.sources] for clip in clips]
    line = {"clips": [clip.path for clip in clips], "names": [", ".join(n) for n in names]}
    if seen is not None:
        line["seen"] = [all(_means_one(name, seen) for name in own) for own in names]
    return line


@functools.cache
def _means_one(name: str, seen: frozenset[str]) -> bool:
    """Whether a name means one of these, in other words maybe: "Dog" and "dog barking"."""
    return bool(match_names([name], [sorted(seen)]))


def _rounded(value: np.ndarray) -> list[float | None] | bool:
    """JSON of a row: dB to three decimals, None where nothing is defined."""
    if value.dtype == bool:
        return bool(value)
    return [round(float(x), 3) if np.isfinite(x) else None for x in value]
