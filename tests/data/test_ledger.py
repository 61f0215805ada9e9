"""What was kept is found again, whatever happened to the file's end."""

import pytest

from opensep_jax.data.ledger import Ledger

ROWS = {"a": "x", 'ü "\n': ["b", {"c": None}], "": "empty"}


def test_round_trip(tmp_path):
    file = tmp_path / "l"
    ledger = Ledger(file)
    assert "a" not in ledger
    ledger.add({"a": "x"})
    ledger.add({k: v for k, v in ROWS.items() if k != "a"})
    ledger.add({})
    again = Ledger(file)
    assert {key: again[key] for key in ROWS if key in again} == ROWS
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize("rest", ['["d", "half', '["d", "no newline"]', "nonsense\n", "[1]\n"])
def test_a_line_that_was_cut_short_is_dropped(tmp_path, rest):
    file = tmp_path / "l"
    Ledger(file).add(ROWS)
    whole = file.read_bytes()
    file.write_bytes(whole + rest.encode())
    ledger = Ledger(file)
    assert "d" not in ledger and ledger["a"] == "x" and file.read_bytes() == whole
    ledger.add({"d": 1})
    assert Ledger(file)["d"] == 1
