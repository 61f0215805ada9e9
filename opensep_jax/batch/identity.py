"""What a result of `infer` depends on, and whether one that is there is the one that is wanted."""

import dataclasses
import hashlib
from pathlib import Path

from opensep_jax.api import Separator
from opensep_jax.batch.inputs import Job
from opensep_jax.batch.work import Options
from opensep_jax.discovery import Discovery


def identity_of(
    job: Job, separator: Separator, options: Options, discovery: Discovery | None
) -> dict:
    """What a result depends on; options that change nothing are left out.

    Args:
        job: of an input that is there.
        separator: the separator.
        options: what the user chose.
        discovery: what finds sources; networks of one that is not loaded have no `id`.

    Returns:
        `input_sha256`, `models` and `options` of `separation.json`.

    Raises:
        OSError: the input cannot be read.
    """
    with job.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    request, models = job.request, dict(separator.models)
    wanted = {"queries": list(request.queries), "masks": separator.engine.masks}
    wanted |= {"caption": request.caption, **dataclasses.asdict(options.encoding)}
    chosen = {
        "not": list(request.suppressed),
        "only": list(request.only),
        "max_sources": request.max_sources,
        "min_confidence": request.min_confidence,
        "no_residual": not options.residual,
    }
    wanted |= {key: value for key, value in chosen.items() if value}
    if request.worded or (options.enrich and request.queries):
        models["parser"] = {"id": discovery.parser.id} if discovery else {}
        wanted["merge_similarity"] = options.merge_similarity
    if request.listens:
        models["captioner"] = {"id": discovery.captioner.id} if discovery else {}
        wanted |= {"min_energy_share": options.min_energy_share, **options.hearing}
    return {"input_sha256": digest, "models": models, "options": wanted}


def check_same(record: dict, identity: dict, folder: Path) -> None:
    """Refuses a result that is not the one that is wanted.

    Args:
        record: `separation.json` of the result.
        identity: of what is wanted; networks without an `id` may be any.
        folder: of the result.

    Raises:
        ValueError: the input, a network or an option is another one.
    """
    if names := _differing(record, identity):
        raise ValueError(
            f"{folder} holds a result with other {', '.join(names)}; --overwrite replaces it, "
            "another --out keeps it"
        )


def _differing(record: dict, identity: dict) -> list[str]:
    """What a result was made with and is not wanted now."""
    names = [] if record.get("input_sha256") == identity["input_sha256"] else ["input"]
    models = identity["models"]
    for network in sorted({*models, *record.get("models", {})}):  # where weights lie is no matter
        there, wanted = (x.get(network, {}).get("id") for x in (record.get("models", {}), models))
        unknown = network in models and wanted is None
        if there != wanted and not unknown:
            names.append(network)
    before, now = record.get("options", {}), identity["options"]
    return names + [key for key in {**now, **before} if before.get(key) != now.get(key)]
