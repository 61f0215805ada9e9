"""Flags that several doors share, apart from `cli`: training loads no language model."""

import argparse
from pathlib import Path

from opensep_jax.cli import DoorError
from opensep_jax.text.prompts import SHOTS, STYLES


def add_language_flags(flags: argparse.ArgumentParser) -> None:
    """Flags of what reads captions; see `text.parse.load_parser`."""
    group = flags.add_argument_group("language model")
    group.add_argument(
        "--language_model",
        default="smollm2",
        help="smollm2 (default), local folder or file, hub id; none: the rule alone",
    )
    group.add_argument("--prompts", type=Path, metavar="FILE.json", help="other few-shot prompts")
    group.add_argument(
        "--shots", default=str(SHOTS), help=f"how many (default {SHOTS}), or which, as in 1,3,6,"
    )
    group.add_argument(
        "--prompt_style", default=STYLES[0], choices=STYLES, help=f"default {STYLES[0]}"
    )
    group.add_argument(
        "--properties",
        default="bank",
        choices=("bank", "llm"),
        help="who tells how sources sound: bank (default), or a language model that knows it",
    )


def language_options(args: argparse.Namespace) -> dict:
    """Those flags as arguments of `text.parse.load_parser`."""
    try:
        numbers = [int(part) for part in args.shots.split(",") if part.strip()]
    except ValueError as error:
        raise DoorError(f"--shots {args.shots!r} is no number and no list like 1,3,6") from error
    if not numbers or min(numbers) < ("," in args.shots):
        raise DoorError(f"--shots {args.shots!r} is no number and no list like 1,3,6")
    return {
        "language_model": args.language_model,
        "prompts": args.prompts,
        "shots": numbers if "," in args.shots else numbers[0],
        "style": args.prompt_style,
        "properties": args.properties,
    }
