"""Flags that several doors share, apart from `cli`: training loads no language model."""

import argparse
from pathlib import Path

from opensep_jax.cli import DoorError
from opensep_jax.discovery import MERGE_SIMILARITY, MIN_ENERGY_SHARE
from opensep_jax.separation.stemfiles import CLIP_POLICIES
from opensep_jax.signal.write import WRITE_FORMATS
from opensep_jax.text.caption import POLICIES
from opensep_jax.text.prompts import SHOTS, STYLES


def add_choice_flags(flags: argparse.ArgumentParser) -> None:
    """Flags of what is separated and kept; see `inputs.Request`."""
    group = flags.add_argument_group("what is wanted of every input; a list may say it of each")
    several = {"action": "append", "default": [], "metavar": "TEXT"}
    group.add_argument("--query", **several, help="a source; repeatable")
    group.add_argument(
        "--caption", metavar="TEXT", help="what is heard: its sources are found and separated"
    )
    group.add_argument(
        "--not",
        **several,
        help="a source; without.<format> is the input without it; alone, nothing else is looked "
        "for; repeatable",
    )
    group.add_argument(
        "--only",
        **several,
        help="of the sources keep what means this, leave the others in the residual; repeatable",
    )
    group.add_argument("--max_sources", type=int, metavar="N", help="keep the N loudest")
    group.add_argument(
        "--min_confidence",
        type=float,
        default=0.0,
        metavar="X",
        help="sources of less confidence, 0 to 1, stay in the residual, default 0",
    )
    group.add_argument(
        "--residual",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write what is left (default), or not",
    )
    group.add_argument(
        "--enrich", action="store_true", help="add acoustic properties to queries before use"
    )


def add_writing_flags(flags: argparse.ArgumentParser) -> None:
    """Flags of the files that are written; see `stemfiles.Encoding`."""
    group = flags.add_argument_group("files")
    formats = [suffix[1:] for suffix in WRITE_FORMATS]
    group.add_argument("--format", default="wav", choices=formats, help="default wav")
    subtypes = ["FLOAT", "PCM_16", "PCM_24"]
    group.add_argument("--subtype", choices=subtypes, help="default: FLOAT in wav, PCM_16 in flac")
    group.add_argument(
        "--clip",
        default=CLIP_POLICIES[0],
        choices=CLIP_POLICIES,
        help="beyond full scale, but in float WAV: cut off (default), or everything turned down",
    )


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
        "--shots",
        default=str(SHOTS),
        help=f"how many (default {SHOTS}), or which ones, with a comma: 1,3,6 or 3,",
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


def add_captioner_flags(flags: argparse.ArgumentParser) -> None:
    """Flags of what listens; see `text.caption.load_captioner` and `discovery`."""
    group = flags.add_argument_group("captioner, for inputs without a query and a caption")
    group.add_argument(
        "--captioner",
        default="demo",
        help="demo (default), demo:<folder>, clapcap, whisper:<hub id or folder>, act:<path>, "
        "file:<.jsonl>",
    )
    group.add_argument(
        "--caption_policy",
        default=POLICIES[0],
        choices=POLICIES,
        help=f"windows of a long recording that are heard, default {POLICIES[0]}: all over it",
    )
    group.add_argument("--caption_windows", type=int, default=8, help="at most, default 8")
    group.add_argument(
        "--merge_similarity",
        type=float,
        default=MERGE_SIMILARITY,
        help=f"names are one source from this cosine on, default {MERGE_SIMILARITY}",
    )
    group.add_argument(
        "--min_energy_share",
        type=float,
        default=MIN_ENERGY_SHARE,
        help=f"found sources with less of the energy stay in the residual, default "
        f"{MIN_ENERGY_SHARE}",
    )


def captioner_options(args: argparse.Namespace) -> dict:
    """Those flags as arguments of `text.caption.load_captioner`."""
    return {
        "name": args.captioner,
        "policy": args.caption_policy,
        "max_windows": args.caption_windows,
    }


def hearing_options(args: argparse.Namespace) -> dict:
    """Those of the flags that change what a network says of a recording, by their names."""
    if args.captioner.startswith("file:"):
        return {}
    names = ["caption_policy"] + ["caption_windows"] * (args.caption_policy == "multi")
    return {name: getattr(args, name) for name in names}


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
