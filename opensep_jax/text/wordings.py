"""The wordings of training prompts, as data that a researcher edits."""

import functools
import json
from importlib import resources

# How a source may be worded in training and queried in evaluation.
WORDINGS = ("caption", "label", "paraphrase", "description")

# Wordings that any label can take.
TEMPLATES = (
    "The sound of {label}",  # as BiModalSep asks
    "{label} can be heard",
    "a recording of {label}",
)


def known_wordings(label: str) -> dict:
    """Hand-written wordings of a label (any case) in `assets/wordings.json`, or none.

    Lists of `paraphrases` and `descriptions`; where the words of the label are not those of a
    sentence about it, a `clause`.
    """
    return _all_wordings().get(label.lower(), {})


@functools.cache
def _all_wordings() -> dict[str, dict]:
    file = resources.files("opensep_jax").joinpath("assets/wordings.json")
    return {label.lower(): known for label, known in json.loads(file.read_text()).items()}


def wordings(label: str, caption: str) -> dict[str, list[str]]:
    """Prompts of one source by kind (a name of `WORDINGS`), without duplicates.

    Args:
        label: class name; may not be empty.
        caption: sentence about this source alone; empty when there is none (the label serves).

    Returns:
        At least one prompt for `caption`, `label` and `paraphrase`; `description` (name with
        acoustic properties) only for labels that `assets/wordings.json` knows.
    """
    known = known_wordings(label)
    templates = [t.format(label=label) for t in TEMPLATES]
    prompts = {
        "caption": [caption or label],
        "label": [label],
        "paraphrase": templates + known.get("paraphrases", []),
        "description": known.get("descriptions", []),
    }
    return {kind: list(dict.fromkeys(texts)) for kind, texts in prompts.items() if texts}
