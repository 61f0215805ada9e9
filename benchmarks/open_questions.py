"""Questions that the paper leaves open, one command each, on mixtures of prepared clips.

    python -m benchmarks.open_questions sources --data runs/soundbank --out runs/questions

sources     how far does separation reach beyond three sources?
captioners  which captioner finds the sources (--captioners)?
shots       how many few-shot examples, and which, does the language model need?
detail      how much of a source's properties should the prompt tell (--checkpoint)?
training    what does training on pairs, on bare names or on descriptions change? (--runs: workdirs
            of benchmarks.ablation; a contestant is a variant, averaged over its seeds)
teller      who should tell the properties: the bank, or the language model?

Each writes a table, its numbers and a plot, all with intervals, as `<question>.md`, `.json` and
`.png`. What `evaluate` scored (sources, captioners, training) is kept in --out, so a killed command
goes on.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import comparison
from opensep_jax import evaluate, sharding
from opensep_jax.api import Separator
from opensep_jax.cli import DoorError, run
from opensep_jax.data.lists import ListedMixture, list_mixtures, pad_texts, prompts, render
from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.evaluation.scores import figures
from opensep_jax.evaluation.systems import baseline_stems, load_system
from opensep_jax.evaluation.tables import known_mean
from opensep_jax.sharding import batch_sharding, place
from opensep_jax.text.compose import clause, compose
from opensep_jax.text.match import match_names
from opensep_jax.text.parse import load_parser
from opensep_jax.text.source import prompt_of

SECONDS, LEVEL_DB = 5.0, 2.5  # as in the protocol `opensep_jax`
SHOTS = (0, 1, 2, 3, 5, "1,2,3,", "3,4,5,", "2,4,5,")
# Contestants of `training`: variants of benchmarks.ablation and the query that each is meant for.
TRAINED = {
    "base": "caption",
    "singles_only": "caption",
    "names_only": "label",
    "enriched_only": "description",
    "captions_only": "caption",
    "pit": "",
    "mixit": "",
}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="benchmarks.open_questions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("question", choices=sorted(QUESTIONS))
    flags.add_argument("--data", required=True, type=Path, help="folder made by prepare")
    flags.add_argument("--out", required=True, type=Path)
    flags.add_argument("--checkpoint", default="demo", help="name, exported folder or workdir")
    flags.add_argument("--num_sources", help="sources per mixture, default 2,3 (sources: 2 to 6)")
    flags.add_argument("--mixtures", type=int, default=100, help="of each number of sources")
    flags.add_argument("--seed", type=int, default=0, help="of the lists")
    flags.add_argument("--batch", type=int, default=8, help="mixtures at a time")
    flags.add_argument("--captioners", default="demo", help="separated by commas; see infer --help")
    flags.add_argument("--runs", type=Path, help="folder of VARIANT-SEED workdirs")
    flags.add_argument("--language_model", default="smollm2", help="see infer --help")
    flags.add_argument("--debug", action="store_true", help="tracebacks with errors")
    return flags


def main(args: argparse.Namespace) -> int:
    """Measures and writes one question."""
    title, measure = QUESTIONS[args.question]
    args.num_sources = args.num_sources or ("2,3,4,5,6" if args.question == "sources" else "2,3")
    command = " ".join(["python -m benchmarks.open_questions", *sys.argv[1:]])
    comparison.write(args.out, args.question, measure(args), title, command)
    return 0


def sources(args: argparse.Namespace) -> comparison.Values:
    """Improvements by number of sources, of captions and names, and of ideal masks."""
    lines = _evaluated(args, "sources", ["--queries", "caption,label"])
    rows = {
        "caption": {"query": "caption", "masks": "normalise"},
        "label": {"query": "label", "masks": "normalise"},
        "caption, with a residual": {"query": "caption", "masks": "limit"},
        "ideal ratio mask": {"system": "irm"},
    }
    return {name: comparison.improvements(lines, wanted) for name, wanted in rows.items()}


def captioners(args: argparse.Namespace) -> comparison.Values:
    """What is found with each captioner."""
    values = {}
    for captioner in args.captioners.split(","):
        name = "captioner_" + "".join(c if c.isalnum() else "_" for c in captioner)
        flags = ["--queries", "discovered", "--baselines", "", "--captioner", captioner]
        lines = _evaluated(args, name, flags, "discovered.jsonl")
        values[captioner] = {
            count: {
                "SI-SDRi": [known_mean(line["si_sdri"]) for line in own],
                "penalised SI-SDR": [line["penalised_si_sdr"] for line in own],
                "name recall": [len(line["matched"]) / len(line["true"]) for line in own],
                "count error": [abs(len(line["said"]) - len(line["true"])) for line in own],
            }
            for count, own in _by_count(lines).items()
        }
    return values


def shots(args: argparse.Namespace) -> comparison.Values:
    """Names found in composed captions, of the model alone and of `parse`."""
    dataset, lists = _lists(args)
    values: dict[str, dict[int, dict[str, list[float]]]] = {}
    for chosen in tqdm(SHOTS, "shots", disable=None):
        numbers = [int(n) for n in chosen.split(",") if n] if isinstance(chosen, str) else chosen
        reader = load_parser(args.language_model, shots=numbers)
        name = f"shots {chosen.rstrip(',')}" if isinstance(chosen, str) else f"first {chosen}"
        for count, mixtures in lists.items():
            said = [
                [clause(n, *c) for n, c in zip(_names(dataset, m), prompts(dataset, m, "caption"),
                                               strict=True)]
                for m in mixtures
            ]  # fmt: skip
            captions = [compose(clauses) for clauses in said]
            true = [[[n, c] for n, c in zip(_names(dataset, m), clauses, strict=True)]
                    for m, clauses in zip(mixtures, said, strict=True)]  # fmt: skip
            free = reader.free(captions)
            parsed = [[source.name for source in parse.sources] for parse in reader.parse(captions)]
            values.setdefault(name, {})[count] = {
                "F1 of the model alone": [_f1(*pair) for pair in zip(free, true, strict=True)],
                "F1 of parse": [_f1(*pair) for pair in zip(parsed, true, strict=True)],
            }
    return values


def detail(args: argparse.Namespace) -> comparison.Values:
    """Improvements by how much the prompt tells."""
    reader = load_parser("none")

    def told(name: str, timbre_only: bool) -> str:
        (properties,) = reader.bank.properties([name])
        if not properties or not timbre_only:
            return prompt_of(name, properties)
        return f"{name}: {properties['timbre']}"

    levels = {
        "name": lambda name: name,
        "nothing": lambda name: "a sound",
        "name and timbre": lambda name: told(name, timbre_only=True),
        "name and all properties": lambda name: told(name, timbre_only=False),
    }
    return _by_prompts(args, levels)


def training(args: argparse.Namespace) -> comparison.Values:
    """Improvements of variants of training at equal budgets, averaged over their seeds."""
    if not args.runs:
        raise DoorError("training needs --runs, the --out of benchmarks.ablation")
    values = {}
    for variant, query in TRAINED.items():
        folders = sorted(args.runs.glob(f"{variant}-[0-9]*"))
        found = []
        for folder in folders:
            flags = ["--checkpoint", str(folder), "--queries", query or "caption"]
            lines = _evaluated(args, folder.name, flags)
            wanted = {"system": str(folder), "query": query, "masks": "limit"}
            found.append(comparison.improvements(lines, wanted))
        if found:
            values[f"{variant} ({len(found)} seeds)"] = comparison.mean_of(found)
        if len(found) > 1:  # an interval is of mixtures; how far seeds are apart is told beside it
            values |= {folder.name: own for folder, own in zip(folders, found, strict=True)}
    if not values:
        raise DoorError(f"{args.runs} holds no workdir like base-0 of benchmarks.ablation")
    return values


def teller(args: argparse.Namespace) -> comparison.Values:
    """Improvements with properties from the bank and from the language model."""
    dataset, lists = _lists(args)
    names = sorted({n for mixtures in lists.values() for m in mixtures for n in _names(dataset, m)})
    told = {}
    for who in ("bank", "llm"):
        reader = load_parser(args.language_model, properties=who)
        told[who] = {source.name: source for source in reader.describe(names)}
    valid = sum(source.properties.get("from") == "llm" for source in told["llm"].values())
    print(f"the language model's answer held for {valid} of {len(names)} names")
    return _by_prompts(
        args,
        {
            "name": lambda name: name,
            "bank": lambda name: told["bank"][name].prompt,
            "language model": lambda name: told["llm"][name].prompt,
        },
    )


QUESTIONS: dict[str, tuple[str, Callable[[argparse.Namespace], comparison.Values]]] = {
    "sources": ("How far does separation reach beyond three sources?", sources),
    "captioners": ("Which captioner finds the sources?", captioners),
    "shots": ("How many few-shot examples, and which?", shots),
    "detail": ("How much should a prompt tell?", detail),
    "training": (
        "What does training on pairs, names or descriptions change (intervals are not of seeds)?",
        training,
    ),
    "teller": ("Who should tell the properties?", teller),
}


def _evaluated(
    args: argparse.Namespace, name: str, flags: Sequence[str], file: str = "items.jsonl"
) -> list[dict]:
    """Lines of an evaluation in `out/name`; what is done there is not done again."""
    argv = [
        "--checkpoint", args.checkpoint, "--data", str(args.data), "--out", str(args.out / name),
        "--num_sources", args.num_sources, "--mixtures", str(args.mixtures), "--seed",
        str(args.seed), "--batch", str(args.batch), "--measures", "si_sdr",
        "--language_model", args.language_model, *flags,
    ]  # fmt: skip
    if run(evaluate.main, evaluate.parser(), (RecordError, ValueError), argv):
        raise DoorError(f"the evaluation {name} did not finish")
    return [json.loads(line) for line in (args.out / name / file).read_text().splitlines()]


def _by_prompts(
    args: argparse.Namespace, contestants: dict[str, Callable[[str], str]]
) -> comparison.Values:
    """SI-SDR improvement when each source is asked for by a text made of its name."""
    dataset, lists = _lists(args)
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1, devices=jax.local_devices())
    system = load_system(args.checkpoint, mesh)
    encoder = Separator.from_pretrained(args.checkpoint).engine.encoder
    values: dict[str, dict] = {name: {} for name in contestants}
    for count, mixtures in lists.items():
        texts = {  # prompts of a mixture by contestant, embedded
            name: [encoder.encode([ask(n) for n in _names(dataset, m)]) for m in mixtures]
            for name, ask in contestants.items()
        }
        length = 16 * -(-max(len(s) for t in texts.values() for m in t for s in m) // 16)
        gains: dict[str, list[float]] = {name: [] for name in contestants}
        for first in range(0, len(mixtures), args.batch):
            part = range(first, min(first + args.batch, len(mixtures)))
            rows = [*part, *[first] * (args.batch - len(part))]
            samples = round(SECONDS * dataset.sample_rate_hz)
            waves = np.stack([render(dataset, mixtures[r], samples, LEVEL_DB) for r in rows])
            sources_BST = place(waves, batch_sharding(mesh))
            before = figures(baseline_stems(sources_BST, "mixture"), sources_BST, ("si_sdr",), mesh)
            for name in contestants:
                padded = [pad_texts(texts[name][row], length) for row in rows]
                states, masks = (np.stack(x) for x in zip(*padded, strict=True))
                batch = place({"text": states, "text_mask": masks}, batch_sharding(mesh))
                stems = system.separate(sources_BST, batch, ("limit",))["limit"]
                after = figures(stems, sources_BST, ("si_sdr",), mesh)
                gain_B = np.nanmean(after["si_sdr"] - before["si_sdr"], axis=1)
                gains[name] += gain_B[: len(part)].tolist()
        for name in contestants:
            values[name][count] = {"SI-SDRi": gains[name]}
    return values


def _lists(args: argparse.Namespace) -> tuple[PreparedDataset, dict[int, list[ListedMixture]]]:
    dataset = PreparedDataset(args.data, "val")
    counts = [int(count) for count in args.num_sources.split(",")]
    return dataset, {n: list_mixtures(dataset, args.mixtures, n, args.seed) for n in counts}


def _names(dataset: PreparedDataset, mixture: ListedMixture) -> list[str]:
    return [dataset.clips[clip].sources[0].name for clip in mixture.clips]


def _by_count(lines: Sequence[dict]) -> dict[int, list[dict]]:
    found: dict[int, list[dict]] = {}
    for line in lines:
        found.setdefault(line["sources"], []).append(line)
    return found


def _f1(said: Sequence[str], true: Sequence[Sequence[str]]) -> float:
    return 2 * len(match_names(said, true)) / max(1, len(said) + len(true))


if __name__ == "__main__":
    sys.exit(run(main, parser(), (RecordError, ValueError)))
