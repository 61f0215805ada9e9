"""What more chips cost in data parallel: bytes of collectives, and the time to compile.

    python -m benchmarks.plan_scaling [--config configs/debug.py] [--topologies v5e:4x4 v5e:16x16]

Compiles the training step ahead of time for each slice, anew, with equally many mixtures per chip,
and prints what the compiler says of it. A chip's program hardly changes with their number, so the
bytes should stay and the time nearly so. Times are CPU seconds of the process. It needs the extra
`tpu`.
"""

import argparse
import runpy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from opensep_jax import plan
from opensep_jax.forecast import changed
from opensep_jax.planning.topology import describe_topology
from opensep_jax.text.cache import Cache


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="benchmarks.plan_scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--config", type=Path, default=Path("configs/debug.py"))
    flags.add_argument("--topologies", nargs="+", default=["v5e:4x4", "v5e:16x16"])
    flags.add_argument("--batch_per_chip", type=int, default=2)
    flags.add_argument("--text_tokens", type=int, default=8, help="of a prompt")
    return flags


def line(report: Mapping, first: Mapping) -> str:
    """A row of the table, its time as a multiple of the first slice's."""
    seconds = report["compile_cpu_seconds"]
    kinds = ", ".join(
        f"{of['count']} {kind} {of['bytes']:,}"
        for kind, of in report["collective_bytes_by_kind"].items()
    )
    ratio = seconds / first["compile_cpu_seconds"]
    return f"| {report['topology']} | {report['chips']} | {kinds} | {seconds:.1f} | {ratio:.2f} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row as soon as a slice is compiled."""
    flags = parser().parse_args(argv)
    config = runpy.run_path(str(flags.config))["get_config"]()
    print("| slice | chips | collectives, bytes | compile, CPU s | times the first |")
    print("|---|---|---|---|---|")
    first = None
    for name in flags.topologies:
        topology = describe_topology(name)
        values = {
            "train.batch": flags.batch_per_chip * topology.chips,
            "data.folder": "",
            "data.text_tokens": flags.text_tokens,
        }
        with tempfile.TemporaryDirectory() as folder:
            report = plan.main(changed(config, values), topology, cache=Cache(Path(folder)))
        first = first or report
        print(line(report, first), flush=True)


if __name__ == "__main__":
    main()
