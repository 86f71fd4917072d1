"""Where this process finds modules beyond the installed ones, as a PYTHONPATH for the processes of its gangs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def import_path(first: str = "") -> str:
    """Entries of `first`, then those of `sys.path` outside the interpreter's own folders, in order, each once.

    An editable installation's source folder is among them, so ranks import the code that the controller runs. Entries
    that do not exist on another node are passed over there: install the package on it.
    """
    own = [Path(prefix).resolve() for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}]
    found = [Path(entry or os.getcwd()).resolve() for entry in sys.path]
    outside = [str(path) for path in found if path.is_dir() and not any(_is_library(path, prefix) for prefix in own)]
    return os.pathsep.join(dict.fromkeys([*first.split(os.pathsep), *outside] if first else outside))


def _is_library(path: Path, prefix: Path) -> bool:
    # Not the whole prefix: a project's sources may well lie beside its virtual environment's `lib`, or hold it.
    return any(path.is_relative_to(prefix / folder) for folder in ("lib", "lib64", "bin"))
