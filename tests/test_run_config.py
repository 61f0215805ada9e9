"""What may change while a run goes on."""

import json
from pathlib import Path

import pytest

from configs import debug
from opensep_jax.checkpoint.state import write_config
from opensep_jax.cli import DoorError
from opensep_jax.run_config import refuse_other_config


def _description(size: str, **changes: object) -> dict:
    config = debug.get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return {"task": "separator", "model": {"size": size}, "config": json.loads(config.to_json())}


@pytest.mark.parametrize("size, refused", [("debug", False), ("paper", True)])
def test_parts_of_a_batch_are_free_unless_they_are_normalised(
    tmp_path: Path, size: str, refused: bool
):
    write_config(tmp_path, _description(size))
    changed = _description(size, train__accumulation=2, mesh__fsdp=2)
    if not refused:
        return refuse_other_config(tmp_path, changed)
    with pytest.raises(DoorError, match=r"config \(train.accumulation: 1 there, 2 now\)"):
        refuse_other_config(tmp_path, changed)


@pytest.mark.parametrize("key", ["mixtures", "seed"])
def test_scores_of_a_run_are_of_the_same_mixtures(tmp_path: Path, key: str):
    write_config(tmp_path, _description("debug"))
    refuse_other_config(tmp_path, _description("debug", eval__batch=4, eval__panels=0))
    with pytest.raises(DoorError, match=f"eval.{key}: .* there, 77 now"):
        refuse_other_config(tmp_path, _description("debug", **{f"eval__{key}": 77}))
