"""Turns a data set into records: decode, resample, word, embed.

Every shard is a pure function of the data set and the options: killed runs go on where they
stopped, and processes with `--shard I --num_shards N` share the work with the same result.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from opensep_jax import __version__
from opensep_jax.cli import EXIT_DONE, EXIT_SOME_FAILED, DoorError, run
from opensep_jax.data import datasets, records
from opensep_jax.data.records import ClipEntry, RecordError, SourceEntry
from opensep_jax.signal.audio import AudioError, read_audio
from opensep_jax.signal.resampling import resample
from opensep_jax.text.embed import TextEncoder, load_text_encoder
from opensep_jax.text.wordings import wordings

logger = logging.getLogger(__name__)

FILES_PER_SHARD = 512
PROMPTS_PER_SHARD = 4096


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="opensep_jax.prepare", description=__doc__)
    flags.add_argument("--dataset", required=True, choices=sorted(datasets.READERS))
    flags.add_argument("--root", required=True, type=Path, help="folder of the data set")
    flags.add_argument("--out", required=True, type=Path, help="folder of the records")
    flags.add_argument("--sample_rate_hz", type=int, default=16000)
    flags.add_argument(
        "--text_encoder", default="minilm", help="local folder, hub id, or minilm (default)"
    )
    flags.add_argument("--max_tokens", type=int, default=512, help="longest prompt")
    flags.add_argument(
        "--max_seconds", type=float, default=30.0, help="longer files are cut into such clips"
    )
    flags.add_argument("--num_shards", type=int, default=1, help="processes that share the work")
    flags.add_argument("--shard", type=int, default=0, help="number of this process, from 0")
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Prepares this process's share; the last process to finish writes `dataset.json`."""
    if not 0 <= args.shard < args.num_shards:
        raise DoorError(f"--shard {args.shard} is not within --num_shards {args.num_shards}")
    if not 0 < args.max_seconds < math.inf or args.sample_rate_hz <= 0:
        raise DoorError("--max_seconds and --sample_rate_hz must be positive")
    if args.max_seconds * args.sample_rate_hz < 1:
        raise DoorError(f"--max_seconds {args.max_seconds:g} is less than one sample")
    if args.max_tokens < 3:  # two of them are special
        raise DoorError(f"--max_tokens {args.max_tokens} has no room for a word; 3 is the least")
    dataset = datasets.READERS[args.dataset](args.root)
    encoder = load_text_encoder(args.text_encoder, args.max_tokens)
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = _all_prompts(dataset)
    plan = _plan(args, dataset, encoder, prompts)
    _check_plan(args.out, plan)

    tasks = list(_clip_tasks(dataset, plan))[args.shard :: args.num_shards]
    for stem, clips in tqdm(tasks, "clips", unit="shard", disable=None):
        if not _is_done(args.out / stem, dataset.root, args.sample_rate_hz):
            rejected: list[dict[str, str]] = []
            entries = _read_clips(dataset.root, clips, args, encoder.id, rejected)
            records.write_clip_shard(args.out / stem, entries, rejected)
    _embed(args, prompts, plan["text_shards"], encoder)
    rejected = [
        item for stem, _ in tasks for item in records.read_index(args.out / stem)["rejected"]
    ]
    for item in rejected:
        logger.error("rejected: %s", item["why"])
    _finish(args.out, dataset, plan)
    return EXIT_SOME_FAILED if rejected else EXIT_DONE


def _plan(
    args: argparse.Namespace, dataset: datasets.Dataset, encoder: TextEncoder, prompts: list[str]
) -> dict:
    """Everything that the records depend on, besides the audio files themselves."""
    contents = [[dataclasses.asdict(clip) for clip in dataset.clips], prompts]
    splits = sorted({clip.split for clip in dataset.clips})
    files = {s: sum(clip.split == s for clip in dataset.clips) for s in splits}
    shards = {s: -(-n // FILES_PER_SHARD) for s, n in files.items()}
    return {
        "dataset": args.dataset,
        "files": files,
        "manifest_and_wordings_sha256": hashlib.sha256(json.dumps(contents).encode()).hexdigest(),
        "sample_rate_hz": args.sample_rate_hz,
        "max_seconds": args.max_seconds,
        "text_encoder": {
            "name": args.text_encoder,
            "id": encoder.id,
            "width": encoder.width,
            "max_tokens": encoder.max_tokens,
        },
        "clip_shards": shards,
        "text_shards": -(-len(prompts) // PROMPTS_PER_SHARD),
        "schema": records.SCHEMA_VERSION,
    }


def _check_plan(out: Path, plan: dict) -> None:
    """Refuses to add to records that were made with other options."""
    file = out / "plan.json"
    if not file.exists():
        records.write_json(file, plan)
    before = records.read_json(file)
    if before != plan:
        wrong = [
            f"{k}: {before.get(k)} there, {plan.get(k)} now"
            for k in sorted({*before, *plan})
            if before.get(k) != plan.get(k)
        ]
        raise DoorError(
            f"{out} holds records of other options ({'; '.join(wrong)}); use another --out"
        )


def _clip_tasks(dataset: datasets.Dataset, plan: dict) -> Iterator[tuple[str, list[datasets.Clip]]]:
    """Stem and clips of each shard, in a fixed order."""
    for split, shards in plan["clip_shards"].items():
        clips = [clip for clip in dataset.clips if clip.split == split]
        for i in range(shards):
            name = records.shard_name(f"clips-{split}", i, shards)
            yield name, clips[i * FILES_PER_SHARD : (i + 1) * FILES_PER_SHARD]


def _is_done(stem: Path, root: Path, sample_rate_hz: int) -> bool:
    """Whether a shard is there and none of the files that it rejected can be read by now."""
    if not stem.with_suffix(".index").exists():
        return False
    for item in records.read_index(stem)["rejected"]:
        try:
            _decode(root / item["path"], sample_rate_hz)
        except AudioError:
            continue
        return False
    return True


def _decode(path: Path, sample_rate_hz: int) -> np.ndarray:
    """Mono PCM16 samples of a file, int16 [T]; turned down where resampling exceeds full scale."""
    audio = read_audio(path)
    mono_1T = audio.samples_CT.mean(0, keepdims=True)
    wave_T = resample(mono_1T, audio.sample_rate_hz, sample_rate_hz)[0]
    pcm_T = np.round(wave_T * (32767 / max(1.0, float(np.abs(wave_T).max())))).astype(np.int16)
    if not pcm_T.any():
        raise AudioError(path, "digital silence")
    return pcm_T


def _read_clips(
    root: Path,
    clips: list[datasets.Clip],
    args: argparse.Namespace,
    encoder_id: str,
    rejected: list[dict[str, str]],
) -> Iterator[tuple[ClipEntry, np.ndarray]]:
    """Decodes files into clips of at most `max_seconds`; what cannot be read is noted."""
    longest = int(args.max_seconds * args.sample_rate_hz)
    for clip in clips:
        if clip.path != os.fsencode(clip.path).decode(errors="replace"):  # no record could hold it
            shown = ascii(clip.path)
            rejected.append({"path": shown, "why": f"{shown}: its name is not UTF-8; rename it"})
            continue
        try:
            pcm_T = _decode(root / clip.path, args.sample_rate_hz)
        except AudioError as error:
            rejected.append({"path": clip.path, "why": str(error)})
            continue
        entry = ClipEntry(clip.path, 0, 0, _source_entries(clip, encoder_id), clip.extra, 0)
        for start in range(0, len(pcm_T), longest):
            part_T = pcm_T[start : start + longest]
            too_short = start and len(part_T) < min(args.sample_rate_hz, longest)  # a rest
            audible = _power(part_T) > 1e-6 * _power(pcm_T)  # not 60 dB below the file's mean
            if audible and not too_short:
                part = dataclasses.replace(entry, start_samples=start, samples=len(part_T))
                yield part, part_T


def _power(pcm_T: np.ndarray) -> float:
    return float(np.mean(np.square(pcm_T, dtype=np.float64)))


def _source_entries(clip: datasets.Clip, encoder_id: str) -> list[SourceEntry]:
    return [
        SourceEntry(
            source.name,
            {
                kind: [records.prompt_key(text, encoder_id) for text in texts]
                for kind, texts in wordings(source.name, source.caption).items()
            },
        )
        for source in clip.sources
    ]


def _all_prompts(dataset: datasets.Dataset) -> list[str]:
    """Every distinct prompt, sorted."""
    sources = {source for clip in dataset.clips for source in clip.sources}
    kinds = [wordings(source.name, source.caption) for source in sources]
    return sorted({text for kind in kinds for texts in kind.values() for text in texts})


def _embed(args: argparse.Namespace, prompts: list[str], shards: int, encoder: TextEncoder) -> None:
    """Embeds this process's shards of the sorted prompts."""
    for shard in tqdm(range(args.shard, shards, args.num_shards), "prompts", disable=None):
        stem = args.out / records.shard_name("text", shard, shards)
        if not stem.with_suffix(".arrayrecord").exists():
            texts = prompts[shard * PROMPTS_PER_SHARD : (shard + 1) * PROMPTS_PER_SHARD]
            keys = [records.prompt_key(text, encoder.id) for text in texts]
            rows = list(zip(keys, texts, encoder.encode(texts), strict=True))
            records.write_text_shard(stem, rows)
    if encoder.truncated:
        logger.warning("%d prompts were cut to %d tokens", encoder.truncated, encoder.max_tokens)


def _finish(out: Path, dataset: datasets.Dataset, plan: dict) -> None:
    """Writes `dataset.json` once every shard is there."""
    text = [records.shard_name("text", i, plan["text_shards"]) for i in range(plan["text_shards"])]
    missing = [n for n, _ in _clip_tasks(dataset, plan) if not (out / f"{n}.index").exists()]
    missing += [n for n in text if not (out / f"{n}.arrayrecord").exists()]
    if missing:
        logger.info("this share is done; %d shards of other processes are missing", len(missing))
        return
    splits = {}
    for split, shards in plan["clip_shards"].items():
        stems = [out / records.shard_name(f"clips-{split}", i, shards) for i in range(shards)]
        indexes = [records.read_index(stem) for stem in stems]
        samples = sum(clip["samples"] for index in indexes for clip in index["clips"])
        splits[split] = {
            "shards": shards,
            "clips": sum(len(index["clips"]) for index in indexes),
            "seconds": round(samples / plan["sample_rate_hz"], 3),
            "rejected": sum(len(index["rejected"]) for index in indexes),
            "sha256": records.digest(indexes),
        }
    info = {
        "schema": records.SCHEMA_VERSION,
        "version": __version__,
        "sample_rate_hz": plan["sample_rate_hz"],
        "audio": "pcm16",
        "text_encoder": plan["text_encoder"],
        "text": {"shards": plan["text_shards"], "width": plan["text_encoder"]["width"]},
        "splits": splits,
        "families": dataset.families,
    }
    for left_over in itertools.chain(out.glob(".clips-*.tmp"), out.glob(".text-*.tmp")):
        left_over.unlink(missing_ok=True)  # of processes that were killed
    file = out / "dataset.json"
    if not file.exists() or records.read_json(file) != info:
        records.write_json(file, info)
    for split, counts in splits.items():
        logger.info("%s: %s", split, ", ".join(f"{v} {k}" for k, v in counts.items()))


def cli() -> None:
    """Entry point of `opensep-prepare`."""
    sys.exit(run(main, parser(), (RecordError, ValueError)))


if __name__ == "__main__":
    cli()
