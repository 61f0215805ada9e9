"""Twenty files, a fifth of them broken: killed three times, or in shards, infer leaves the same.

The full proof is `python -m benchmarks.infer_batches`.
"""

import os

import pytest

from benchmarks.infer_batches import main
from tests.tiny_checkpoint import shared_checkpoint


@pytest.mark.slow
def test_kills_and_shards_change_nothing(capfd: pytest.CaptureFixture, monkeypatch):
    """A long file is missing here, so that no run takes more than some seconds."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("count=8", "count=1"))
    sizes = ["--files", "20", "--long", "0", "--kills", "3", "--shards", "2"]
    flags = ["--checkpoint", str(shared_checkpoint()), "--query", "dog", "--query", "cello"]
    code = main([*sizes, "--", *flags])
    said = capfd.readouterr().out
    assert code == 0, said
    assert "16 done, 4 of 4 broken ones reported" in said and said.count("files, equal") == 2
