"""The cache of parses: whole files only, whoever writes."""

import concurrent.futures
from pathlib import Path

import pytest

from opensep_jax.text.cache import Cache, digest


def _put_often(folder: Path, key: str, value: list) -> None:
    for _ in range(50):
        Cache(folder).put(key, value)


def test_concurrent_writers_leave_whole_values(tmp_path: Path):
    cache, key = Cache(tmp_path), digest("a", 1)
    values = [["x" * 5000], ["y" * 90000]]
    cache.put(key, values[0])
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(_put_often, tmp_path, key, value) for value in values]
        seen = [cache.get(key) for _ in range(200)]
        assert [writer.result() for writer in writers] == [None, None]
    assert all(value in values for value in seen)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [f"{key}.json"]


def test_what_is_missing_damaged_or_read_only_is_no_value(tmp_path: Path):
    cache, key = Cache(tmp_path / "new"), digest("b")
    assert cache.get(key) is None
    cache.put(key, {"c": [1]})
    assert cache.get(key) == {"c": [1]} and digest("b") == key != digest("b", "b")
    (file,) = tmp_path.rglob("*.json")
    file.write_text('{"c": [')
    assert cache.get(key) is None
    blocked = tmp_path / "file"
    blocked.write_text("")
    Cache(blocked).put(key, 1)
    assert Cache(blocked).get(key) is None


@pytest.mark.parametrize("order", [{"a": 1, "b": 2}, {"b": 2, "a": 1}])
def test_a_digest_is_of_content(order: dict):
    assert digest(order) == digest({"a": 1, "b": 2}) and len(digest(order)) == 64
