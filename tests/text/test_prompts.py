"""Few-shot prompts: as data, as text for both kinds of model, and how shots are chosen."""

import json
from pathlib import Path

import pytest

from opensep_jax.text.prompts import Task, encode_task, load_tasks
from tests.scripted_model import END, ScriptedModel

TASK = Task("Do it.", "Caption", "Sources", (("a dog", "dog"), ("a cat", "cat"), ("rain", "rain")))


def test_completion_prompts_are_text_that_goes_on():
    model = ScriptedModel()
    encoded = encode_task(TASK.choose(2), model)
    whole = encoded.prefix + encoded.suffix(model, "wind")
    assert model.decode(whole) == (
        "Do it.\n\nCaption: a dog\nSources: dog\n\nCaption: a cat\nSources: cat\n\n"
        "Caption: wind\nSources:"
    )
    assert encoded.ends == (END, 1)


def test_chat_prompts_use_the_template_and_end_like_it():
    model = ScriptedModel(chat_template="yes")
    encoded = encode_task(TASK.choose([3]), model, "chat")
    whole = encoded.prefix + encoded.suffix(model, "wind")
    assert model.decode(whole) == (
        "system: Do it.\nuser: Caption: rain\nassistant: Sources: rain\n"
        "user: Caption: wind\nassistant: Sources:"
    )
    assert encoded.ends == (1, END)
    with pytest.raises(ValueError, match="no chat template"):
        encode_task(TASK, ScriptedModel(), "chat")
    with pytest.raises(ValueError, match="'loud' is not known"):
        encode_task(TASK, model, "loud")


def test_shots_are_chosen_by_count_or_number():
    assert TASK.choose(0).shots == () and TASK.choose(2).shots == TASK.shots[:2]
    assert [given for given, _ in TASK.choose([3, 1]).shots] == ["rain", "a dog"]
    for wrong in (4, [0], [1, 9]):
        with pytest.raises(ValueError, match="is not among 3"):
            TASK.choose(wrong)


def test_the_file_is_data_and_errors_name_it(tmp_path: Path):
    tasks = load_tasks()
    assert all(len(task.shots) >= 5 for task in tasks.values())
    file = tmp_path / "mine.json"
    data = {name: vars(task) | {"shots": task.shots[:1]} for name, task in tasks.items()}
    file.write_text(json.dumps(data))
    assert load_tasks(file)["sources"] == tasks["sources"].choose(1)
    for text, expected in (
        ("{", "mine.json is not JSON"),
        ("[]", "'sources' needs the texts"),
        (json.dumps(data | {"properties": {}}), "'properties' needs the texts"),
        (json.dumps({**data, "sources": {**data["sources"], "shots": [["x"]]}}), "pairs of texts"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=expected):
            load_tasks(file)
