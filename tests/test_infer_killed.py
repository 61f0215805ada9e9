"""Twenty files, a fifth of them broken: killed three times, or in shards, infer leaves the same.

The full proof is `python -m benchmarks.infer_batches`.
"""

import json
import os
from pathlib import Path

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


@pytest.mark.slow
def test_kills_while_stems_wait(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch):
    """Listening, stems wait in a nameless file until it is known which of them are heard."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("count=8", "count=1"))
    texts = ("A dog barks while a cello plays", "Rain falls", "???")
    rows = [
        {"input": f"{number:03d}.{suffix}", "caption": texts[number % len(texts)]}
        for number in range(10)
        for suffix in ("wav", "flac", "ogg", "mp3", "aiff")
    ]
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--files", "10", "--long", "0", "--kills", "2", "--shards", "0"]
    flags = ["--checkpoint", str(shared_checkpoint()), "--captioner", f"file:{captions}"]
    code = main([*sizes, "--", *flags, "--language_model", "none"])
    said = capfd.readouterr().out
    assert code == 0, said
    assert "8 done, 2 of 2 broken ones reported" in said and said.count("files, equal") == 1
