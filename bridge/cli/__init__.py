"""The command line: the only room that prints or exits."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from bridge.cli.parser import build_parser
from bridge.errors import BridgeError
from models.errors import ModelError

EXIT_FAILURE, EXIT_MISUSE, EXIT_CANCELLED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``stembridge`` and return its exit code.

    0 for success, 2 where the request or its input has to change, 1 where something failed on
    the way, 130 after Ctrl-C or a request to terminate.
    """
    options = build_parser().parse_args(arguments)
    # A polite kill ends like Ctrl-C: what is half-written is removed on the way out.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        # Each command's module is loaded only when it runs: torch takes seconds.
        command = importlib.import_module(options.module)
        command.run(options)
    except BrokenPipeError:
        # The reader of our output left early, as `| head` does.
        sys.stderr.close()
        return EXIT_FAILURE
    except BridgeError as error:
        line, exit_code = str(error), error.exit_code
    except ModelError as error:
        line, exit_code = str(error), EXIT_MISUSE
    except KeyboardInterrupt:
        line, exit_code = "cancelled; nothing half-written was kept", EXIT_CANCELLED
    except OSError as error:
        # What no room expected: a disk that went away, a folder that may not be listed.
        place, reason = error.filename or "the system", error.strerror or str(error)
        line, exit_code = f"{place}: {reason}; check it and run again", EXIT_FAILURE
    except MemoryError:
        line, exit_code = "out of memory; close other programs or use --jobs 1", EXIT_FAILURE
    else:
        return 0
    return _complain(line, exit_code)


def _complain(line: str, exit_code: int) -> int:
    print(f"stembridge: {' '.join(line.split())}", file=sys.stderr)
    return exit_code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
