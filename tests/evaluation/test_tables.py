"""Aggregates, intervals, improvements, silence rules."""

import numpy as np
import pytest

from opensep_jax.evaluation import tables


def test_the_interval_is_that_of_the_mean_of_normal_values():
    values = np.random.default_rng(0).standard_normal(400) + 5
    estimate = tables.bootstrap([*values, np.nan])
    error = values.std(ddof=1) / np.sqrt(400)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert str(tables.bootstrap([np.nan])) == ""


def test_classes_count_alike_where_the_protocol_says_so():
    values, classes = [1.0, 2.0, 9.0, 20.0], ["a", "a", "a", "b"]
    assert tables.bootstrap(values).mean == 8
    assert tables.bootstrap(values, "class_means", classes).mean == 12
    assert tables.bootstrap(values, "class_medians", classes).mean == 11


@pytest.fixture
def lines() -> list[dict]:
    def line(item: int, scores: list[float], counts: bool, names: list[str]) -> dict:
        mixture = {"system": "mixture", "query": "", "masks": "", "si_sdr": [0.0, -1.0]}
        net = {"system": "net", "query": "label", "masks": "none", "si_sdr": scores}
        return {
            "sources": 2, "item": item, "names": names, "seen": [True, names[1] != "new"],
            "scores": [mixture | {"counts": True}, net | {"counts": counts}],
        }  # fmt: skip

    return [line(0, [4.0, 7.0], True, ["a", "b"]), line(1, [2.0, None], False, ["a", "new"]),
            line(2, [1.0, 1.0], True, ["b", "new"])]  # fmt: skip


def _net(rows: list[dict], group: str = "all") -> dict:
    (row,) = (row for row in rows if row["system"] == "net" and row["group"] == group)
    return row


def test_improvements_and_groups(lines: list[dict]):
    improved = tables.with_improvements(lines)
    assert improved[1]["scores"][1]["si_sdri"] == [2.0, None]
    rows = tables.summarise(improved, "mean", "all", "scored")
    assert _net(rows)["si_sdri"].mean == pytest.approx((6 + 2 + 1.5) / 3)
    assert _net(rows, "seen")["si_sdri"].mean == pytest.approx((6 + 2 + 1) / 3)
    assert _net(rows, "unseen")["si_sdri"].mean == pytest.approx(2)
    (plain,) = (row for row in tables.flat(rows) if row["group"] == "unseen" and row["query"])
    assert plain["si_sdri"] == 2 and plain["mixtures"] == 2


def test_published_rules_leave_out_mixtures_and_score_the_first(lines: list[dict]):
    rows = tables.summarise(lines, "mean", "first", "published")
    row = _net(rows)
    assert row["si_sdr"].mean == 2.5 and (row["mixtures"], row["left_out"]) == (2, 1)
