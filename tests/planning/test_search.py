"""Which arrangements a search measures."""

from opensep_jax.planning.search import Candidate, explore
from opensep_jax.planning.table import comparison, summary


def _measure(candidate: Candidate) -> dict:
    """A chip with room for 20 examples without remat and without sharing, for 50 otherwise."""
    room = 50 if candidate.remat or candidate.fsdp > 1 else 20
    fits = candidate.batch_per_chip <= room
    report = {"fits": fits, "memory_per_chip_bytes": 2**30, "memory_headroom": 0.5}
    if not fits:
        return {"fits": False}
    rate = candidate.batch_per_chip * (1 - 0.3 * candidate.remat)
    return report | {
        "largest_batch_per_chip_estimate": room,
        "mfu_bound": 0.5,
        "examples_per_second_per_chip_with_links": rate,
    }


def test_batches_double_while_the_next_should_fit():
    tried = [candidate for candidate, _ in explore(8, 16, 4, _measure)]
    assert [c.batch_per_chip for c in tried if c == Candidate(c.batch_per_chip, False, 1)] == [
        8,
        16,
    ]
    assert [c.batch_per_chip for c in tried if c == Candidate(c.batch_per_chip, True, 4)] == [
        8, 16, 32,
    ]  # fmt: skip
    assert {c.fsdp for c in tried} == {1, 4, 16}
    assert len(set(tried)) == len(tried)


def test_batches_stay_whole_in_every_part_of_accumulation():
    found = list(explore(72, 4, 4, lambda _: {"fits": False}, parts=6))
    tried = {c.batch_per_chip for c, _ in found}
    assert tried == {72, 36, 18, 6}


def test_batches_halve_until_one_fits_and_the_fastest_comes_first():
    results = [r for r in explore(64, 4, 4, _measure) if r[0].fsdp == 1]
    assert [c.batch_per_chip for c, _ in results] == [64, 32, 16, 64, 32]
    rows = comparison(results).splitlines()
    assert rows[2].startswith("| 32 | yes | 1 | 1.00 | 50% | 50.0% | 22.4 |")
    assert rows[3].startswith("| 16 | no | 1 ") and rows[4].endswith("| - | - | - | - |")


def test_what_does_not_fit_has_no_speed():
    report = {
        "network": "base", "parameters": 84e6, "topology": "gpu:h100:1", "chips": 1, "mesh": {},
        "batch": 8, "batch_per_chip": 8, "method": "roofline", "fits": False,
        "memory_per_chip_bytes": 2**31, "memory_limit_bytes": 2**30, "memory_parts_bytes": {},
        "step_seconds_bound": 0.1,
    }  # fmt: skip
    assert summary(report).splitlines()[-1].endswith("2.00 of 1.0 GiB ()")
