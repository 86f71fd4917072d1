"""What the command line prints and how it ends: exit codes, one clear message a failure, JSON alone on stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

QUIET_LOGGERS = ("ray", "mlflow", "alembic", "matplotlib", "urllib3", "datasets", "fsspec", "filelock", "asyncio")


class CommandFailed(Exception):
    """A command ends with this code after this message; for what no exception of the parts says already."""

    def __init__(self, exit_code: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code


def say(text: str = "") -> None:
    """A result, on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """Progress or a remark, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def say_json(document: Any) -> None:
    """One stable document on stdout and nothing else."""
    say(json.dumps(document, indent=2, sort_keys=True, allow_nan=False))


def is_interactive() -> bool:
    """Whether a live view may be drawn: a terminal that is neither dumb nor asked to be plain."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def configure_logging(verbose: bool = False) -> None:
    """The story of a study on stderr, one event a line."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns what a user can cause or act on into one message and its exit code (DESIGN: 0, 1, 2, 3, 130).

    Anything else is a bug of ours and keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except CommandFailed as failure:
        if str(failure):
            tell(str(failure))
        sys.exit(failure.exit_code)
    except BrokenPipeError:
        # The reader of our output left (`scaling plan | head`): nothing more to say, and no traceback at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_DONE)
    except (ValueError, RuntimeError, OSError) as error:
        known = _known_failure(error)
        if known is None:
            raise
        tell(f"scaling: {known[1]}")
        sys.exit(known[0])


def _known_failure(error: Exception) -> tuple[int, str] | None:
    """Exit code and message of a failure that a user can act on; None for a bug."""
    # Looked up by name along the class's bases, so that reporting an error of one part imports no other.
    names = {base.__name__ for base in type(error).__mro__}
    if "ClusterUnreachable" in names:
        return EXIT_UNREACHABLE, f"the cluster cannot be reached: {error}"
    if "TrackingUnreachable" in names:
        return EXIT_UNREACHABLE, f"the tracking server cannot be reached: {error}"
    if "FitError" in names:
        return EXIT_FAILED, f"no fit: {error}"
    if names & {"StudyError", "CorpusError", "TableError", "LedgerError", "TrackingError", "CheckpointError"}:
        return EXIT_USAGE, str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return EXIT_USAGE, f"{error.filename}: {error.strerror}"
    if type(error) is ValueError:
        return EXIT_USAGE, str(error)
    return None
