"""Which steps are profiled. (That they are: `test_train.py`.)"""

import pytest

from opensep_jax.training.profile import parse_steps


def test_steps():
    assert parse_steps("3:5") == (3, 5)
    assert parse_steps("7:7") == (7, 7)


@pytest.mark.parametrize("text", ["5", "5:3", "0:3", "a:b", "3:", "-1:2", "1:2:3"])
def test_no_steps(text: str):
    with pytest.raises(ValueError, match="is not A:B with 1 <= A <= B"):
        parse_steps(text)
