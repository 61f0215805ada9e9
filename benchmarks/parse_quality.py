"""How well captions are parsed: sources against hand labels, properties against closed questions.

    python -m benchmarks.parse_quality --gold GOLD.json --scorer score_sources.py

Sources: the naive split, the rule, the model alone, the model within the grammar, and what `parse`
does. GOLD and the scorer are those of the project's golden folder. Properties: the bank without
the sound that is asked for, and `tests/golden/closed_properties.json`, whose sounds it lacks;
beside them the score of giving always the same answer, the best one.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from opensep_jax.flags import add_language_flags, language_options
from opensep_jax.text.bank import CLOSED, Bank, closed_answers, load_sounds
from opensep_jax.text.clauses import content
from opensep_jax.text.embed import load_text_encoder
from opensep_jax.text.parse import load_parser
from opensep_jax.text.segments import segments

HELD_OUT = Path(__file__).parent.parent / "tests" / "golden" / "closed_properties.json"
_NAIVE = re.compile(r",|\b(?:and|then|while|as|with|followed by)\b")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="benchmarks.parse_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--gold", type=Path, help="labelled captions; without: properties only")
    flags.add_argument("--scorer", type=Path, help="score_sources.py")
    flags.add_argument("--show", action="store_true", help="print what the model wrote")
    add_language_flags(flags)
    return flags


def naive(caption: str) -> list[str]:
    """The caption cut at commas and joining words."""
    return [part.strip() for part in _NAIVE.split(caption) if part.strip()]


def score(args: argparse.Namespace, names: dict[str, list[str]]) -> str:
    """The scorer's line for each set of the gold captions, and how many names are repeats."""
    said = [[content(name) for name in found] for found in names.values()]
    repeats = sum(len(found) - len(set(found)) for found in said)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(names, file)
        file.flush()
        command = [sys.executable, str(args.scorer), str(args.gold), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return "; ".join(f"{line} repeats {repeats}" for line in done.stdout.splitlines())


def sources_table(args: argparse.Namespace) -> None:
    """Prints the scores of each way to find sources."""
    captions = [item["caption"] for item in json.loads(args.gold.read_text("utf-8"))["items"]]
    ruled = [segments(caption) for caption in captions]
    ways: dict[str, Callable[[], list[list[str]]]] = {
        "naive split": lambda: [naive(caption) for caption in captions],
        "rule": lambda: [[source.name for source in found] for found in ruled],
    }
    with tempfile.TemporaryDirectory() as cache:
        found = load_parser(**language_options(args), cache=Path(cache))
        if args.language_model != "none":
            ways["free"] = lambda: found.free(captions)
            ways["constrained"] = lambda: found.constrained(captions, ruled)
        ways["parse"] = lambda: [[s.name for s in p.sources] for p in found.parse(captions)]
        for way, names_of in ways.items():
            started = time.monotonic()
            names = names_of()
            seconds = time.monotonic() - started
            print(
                f"{way:12} {score(args, dict(zip(captions, names, strict=True)))} ({seconds:.1f} s)"
            )
            if args.show and way not in ("naive split", "rule"):
                for caption, listed in zip(captions, names, strict=True):
                    print(f"    {caption} | {'; '.join(listed)}")
    shares = {step: count / len(captions) for step, count in found.steps.items()}
    print("steps of parse: " + ", ".join(f"{step} {share:.2f}" for step, share in shares.items()))


def properties_table() -> None:
    """Prints the share of right answers to the closed questions."""
    sounds = load_sounds()
    bank = Bank(load_text_encoder("minilm"), sounds)
    own_NN = bank.similarities([sound.name for sound in sounds])
    np.fill_diagonal(own_NN, -1.0)
    held = json.loads(HELD_OUT.read_text("utf-8"))["sounds"]
    overlap = {s["name"] for s in held} & {n for s in sounds for n in (s.name, *s.aliases)}
    assert not overlap, f"in the bank and held out: {sorted(overlap)}"
    held_HN = bank.similarities([sound["name"] for sound in held])
    questions = list(CLOSED)
    print(f"properties: {'':24}" + "".join(f"{q:>10}" for q in questions) + f"{'mean':>10}")
    for title, right, cosine in (
        (f"bank, leave one out ({len(sounds)})", [s.closed for s in sounds], own_NN),
        (f"held-out sounds ({len(held)})", held, held_HN),
    ):
        given = [closed_answers(sounds, row) for row in cosine]
        _row(title, [_share(right, q, [g[q] for g in given]) for q in questions])
        best = []
        for q in questions:
            counts = collections.Counter(answer for r in right for answer in r[q])
            best.append(counts.most_common(1)[0][1] / len(right))
        _row("  best constant answer", best)


def _share(right: Sequence[dict], question: str, given: Sequence[str]) -> float:
    hits = [answer in labels[question] for labels, answer in zip(right, given, strict=True)]
    return sum(hits) / len(hits)


def _row(title: str, shares: list[float]) -> None:
    print(f"{title:36}" + "".join(f"{share:10.3f}" for share in (*shares, np.mean(shares))))


def main() -> None:
    """Prints both tables."""
    args = parser().parse_args()
    if args.gold:
        sources_table(args)
    properties_table()


if __name__ == "__main__":
    main()
