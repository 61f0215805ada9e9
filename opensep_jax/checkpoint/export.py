"""Exports a training run's newest EMA parameters as a folder that ships.

python -m opensep_jax.checkpoint.export WORKDIR FOLDER
"""

import argparse
import sys
from pathlib import Path

from opensep_jax.checkpoint import shipped, state


def main() -> int:
    """Reads a workdir (or `checkpoints/<step>`) and writes the export."""
    flags = argparse.ArgumentParser(
        prog="opensep_jax.checkpoint.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("workdir", type=Path, help="of train, or its checkpoints/<step>")
    flags.add_argument("folder", type=Path, help="new, to be written")
    args = flags.parse_args()
    try:
        config, params = state.load_params(args.workdir)
        config["steps"] = config.pop("step")
        shipped.export(args.folder, params, config)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
