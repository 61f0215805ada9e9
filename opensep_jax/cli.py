"""What the doors share: logging, exit codes, errors as messages."""

import argparse
import contextlib
import logging
from collections.abc import Callable, Sequence

from opensep_jax import __version__

logger = logging.getLogger("opensep_jax")

EXIT_DONE, EXIT_SOME_FAILED, EXIT_CANNOT_RUN = 0, 1, 2
VERSION = f"opensep_jax {__version__}"
EXIT_PREEMPTED = 75  # sysexits' "temporary failure": all is saved, the same command goes on


class DoorError(Exception):
    """The run cannot start or go on; the message says what is wrong and where."""


def run(
    main: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    expected: tuple[type[Exception], ...] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Parses flags and runs a door.

    Args:
        main: takes the parsed flags and returns an exit code.
        parser: the flags, `debug` among them; gets `--version` and, where argcomplete is installed,
            completion in the shell.
        expected: exceptions of bad input, reported without a traceback, besides `DoorError` and
            `OSError`.
        argv: arguments; those of the process by default.

    Returns:
        Exit code: 0 all done, 1 some inputs failed, 2 the run could not start or go on.
    """
    parser.add_argument("--version", action="version", version=VERSION)
    with contextlib.suppress(ImportError):
        import argcomplete  # optional

        argcomplete.autocomplete(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s", force=True)
    for noisy in ("absl", "jax", "orbax", "httpx", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return main(args)
    except (DoorError, OSError, *expected) as error:
        logger.error("%s", error, exc_info=args.debug)
        return EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        logger.error("interrupted; what is finished is kept, run again to go on")
        return EXIT_CANNOT_RUN
