"""Few-shot prompts of the language model: data that a researcher edits, `assets/prompts.json`.

A task has an instruction and shots, pairs of an input and the wanted answer. Everything before the
input of interest is the same for all inputs, so that its states are computed once.
"""

import dataclasses
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opensep_jax.text.generate import LanguageModel

SHOTS = 5
STYLES = ("completion", "chat")
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for the input while a chat is rendered


@dataclasses.dataclass(frozen=True)
class Task:
    """A few-shot prompt.

    Attributes:
        instruction: what to do, one sentence.
        input: what the model is given, such as "Caption".
        output: what it writes, such as "Sources".
        shots: pairs of input and answer.
    """

    instruction: str
    input: str
    output: str
    shots: tuple[tuple[str, str], ...]

    def choose(self, shots: int | Sequence[int]) -> "Task":
        """The same task with the first so many shots, or with those of the given numbers from 1."""
        numbers = range(1, shots + 1) if isinstance(shots, int) else shots
        wrong = [n for n in numbers if not 1 <= n <= len(self.shots)]
        if wrong:
            raise ValueError(f"shot {wrong[0]} of {self.output!r} is not among {len(self.shots)}")
        return dataclasses.replace(self, shots=tuple(self.shots[n - 1] for n in numbers))


def load_tasks(path: str | Path | None = None) -> dict[str, Task]:
    """Reads the tasks `sources` and `properties`.

    Args:
        path: JSON file like `assets/prompts.json`, which is the default.

    Raises:
        ValueError: the file is no such JSON; the message names file and task.
        OSError: it cannot be read.
    """
    file = Path(path) if path else resources.files("opensep_jax").joinpath("assets/prompts.json")
    try:
        data = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON in UTF-8: {error}") from error
    return {name: _read_task(data, name, str(file)) for name in ("sources", "properties")}


def _read_task(data: object, name: str, file: str) -> Task:
    task = data.get(name) if isinstance(data, dict) else None
    texts = ("instruction", "input", "output")
    if not isinstance(task, dict) or not all(isinstance(task.get(k), str) for k in texts):
        raise ValueError(f"{file}: {name!r} needs the texts {', '.join(texts)} and the list shots")
    shots = task.get("shots")
    pairs = isinstance(shots, list) and all(
        isinstance(shot, list) and len(shot) == 2 and all(isinstance(t, str) for t in shot)
        for shot in shots
    )
    if not pairs:
        raise ValueError(f'{file}: "shots" of {name!r} is no list of pairs of texts')
    return Task(*(task[k] for k in texts), tuple((a, b) for a, b in shots))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A task as token ids of one model.

    Attributes:
        prefix: ids of what is the same for all inputs.
        ends: ids that an answer ends with; the first is the one to end a constrained answer.
        tail: ids between an input and its answer.
    """

    prefix: list[int]
    ends: tuple[int, ...]
    tail: list[int]

    def suffix(self, model: "LanguageModel", text: str) -> list[int]:
        """Ids of an input, up to where its answer begins."""
        return [*model.encode(f" {text}"), *self.tail]


def encode_task(task: Task, model: "LanguageModel", style: str = "completion") -> Encoded:
    """Renders a task for a model.

    Args:
        task: the few-shot prompt.
        model: whose tokenizer and chat template are used.
        style: `completion`, plain text to go on with, which small models do better; or `chat`, by
            the model's template.

    Raises:
        ValueError: the style is unknown, or `chat` for a model without a template.
    """
    if style not in STYLES:
        raise ValueError(f"prompt style {style!r} is not known; known are {', '.join(STYLES)}")
    if style == "chat" and not model.chat_template:
        raise ValueError(f"model {model.id} has no chat template; use the style completion")
    newline = model.encode("\n")[-1]
    if style == "completion":
        shots = "".join(
            f"{task.input}: {given}\n{task.output}: {answer}\n\n" for given, answer in task.shots
        )
        prefix = model.encode(f"{task.instruction}\n\n{shots}{task.input}:")
        start = [] if model.bos is None else [model.bos]
        return Encoded([*start, *prefix], (newline, *model.eos), model.encode(f"\n{task.output}:"))
    messages = [{"role": "system", "content": task.instruction}]
    for given, answer in task.shots:
        messages.append({"role": "user", "content": f"{task.input}: {given}"})
        messages.append({"role": "assistant", "content": f"{task.output}: {answer}"})
    messages.append({"role": "user", "content": f"{task.input}:{_MARK}"})
    before, _, after = model.render_chat(messages).rpartition(_MARK)
    tail = model.encode(f"{after}{task.output}:", special=True)
    return Encoded(model.encode(before, special=True), (*model.eos, newline), tail)
