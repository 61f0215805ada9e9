"""Reports of `plan` as text."""

from collections.abc import Mapping, Sequence

from opensep_jax.planning.search import Candidate

_GIB = 2**30


def summary(report: Mapping) -> str:
    """One report, a line per figure."""
    rows = [
        ("network", f"{report['network']}, {report['parameters'] / 1e6:.1f} M parameters"),
        ("slice", f"{report['topology']}, {report['chips']} chips, mesh {_named(report['mesh'])}"),
        ("batch", f"{report['batch']} mixtures, {report['batch_per_chip']:g} per chip"),
        ("how", report["method"]),
        *_memory_rows(report),
    ]
    if report["fits"]:
        rows += _speed_rows(report)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def comparison(results: Sequence[tuple[Candidate, Mapping]]) -> str:
    """Markdown table of a search, the fastest first and what does not fit last."""
    lines = [
        "| batch per chip | remat | fsdp | GiB | head-room | MFU bound | examples/s/chip |",
        "|---|---|---|---|---|---|---|",
    ]
    for candidate, report in sorted(results, key=lambda result: -_rate(result[1])):
        cells = ["-"] * 4
        if report["fits"]:
            cells = [
                f"{report['memory_per_chip_bytes'] / _GIB:.2f}",
                f"{report['memory_headroom']:.0%}",
                f"{report['mfu_bound']:.1%}",
                f"{_rate(report):.1f}",
            ]
        lines.append(
            f"| {candidate.batch_per_chip} | {'yes' if candidate.remat else 'no'} "
            f"| {candidate.fsdp} | {' | '.join(cells)} |"
        )
    return "\n".join([*lines, "", "examples/s/chip: links included, none of them hidden"])


def _memory_rows(report: Mapping) -> list[tuple[str, str]]:
    if "memory_per_chip_bytes" not in report:
        return [("memory per chip", f"does not fit: {report['error']}")]
    parts = ", ".join(
        f"{name} {value / _GIB:.2f}" for name, value in report["memory_parts_bytes"].items()
    )
    total, limit = report["memory_per_chip_bytes"], report["memory_limit_bytes"]
    rows = [
        ("memory per chip", f"{total / _GIB:.2f} of {limit / _GIB:.1f} GiB ({parts})"),
    ]
    if "memory_headroom" in report:
        rows += [
            ("head-room", f"{report['memory_headroom']:.1%}"),
            ("largest batch", f"about {report['largest_batch_per_chip_estimate']} per chip"),
        ]
    return rows


def _speed_rows(report: Mapping) -> list[tuple[str, str]]:
    kinds = ", ".join(
        f"{of['count']} {kind} {of['bytes'] / 1e6:.1f} MB"
        for kind, of in report.get("collective_bytes_by_kind", {}).items()
    )
    rows = [
        ("model FLOPs", f"{report['flops_per_step'] / 1e12:.1f} T per step (3 x forward)"),
        (
            "step, compute only",
            f"at least {report['step_seconds_bound'] * 1e3:.1f} ms: MFU at most "
            f"{report['mfu_bound']:.1%}, {report['examples_per_second_per_chip_bound']:.1f} "
            "mixtures/s/chip",
        ),
        (
            "and links",
            f"{report['link_seconds'] * 1e3:.2f} ms more if nothing hides them: "
            f"MFU {report['mfu_with_links']:.1%}, "
            f"{report['examples_per_second_per_chip_with_links']:.1f} mixtures/s/chip, "
            f"{report['clips_per_second_with_links']:,.0f} clips/s on the slice",
        ),
        ("collectives", kinds or f"gradients {report['collective_bytes'] / 1e6:.1f} MB"),
        *(_collective_row(one) for one in report.get("large_collectives", ())),
        (
            "input of a host",
            f"{report['host_clips_per_second']:,.0f} clips/s, "
            f"{report['host_bytes_per_second'] / 1e6:,.0f} MB/s",
        ),
    ]
    if "cost_per_million_clips" in report:
        price = report["price_per_chip_hour"]
        cost = f"{report['cost_per_million_clips']:.2f} at {price:g} per chip and hour"
        rows.append(("a million clips", cost))
    return rows


def _collective_row(one: Mapping) -> tuple[str, str]:
    if not one["asynchronous"]:
        how = "nothing runs meanwhile"
    elif one["enclosed_cycles"]:
        how = f"encloses {one['enclosed_cycles'] / 1e6:.1f} M cycles of compute"
    else:
        how = "asynchronous, encloses no compute"
    return f"  {one['kind']}", f"{one['bytes'] / 1e6:.1f} MB, {how}"


def _named(mesh: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "of one"


def _rate(report: Mapping) -> float:
    return report.get("examples_per_second_per_chip_with_links", 0.0)
