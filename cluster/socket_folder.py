"""The folder of a fork server's socket, in the folder for temporary files: marked with its host, removed with it.

multiprocessing removes it when its process ends in good order, which a host seldom does. So the host removes it when
it closes, its fork server when the host was killed, and the next host on this machine when both were killed at once.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path

import psutil


def claim() -> Path:
    """This process's folder, with its mark. Sweeps away what dead hosts have left."""
    remove([folder for pid, folder in _marked() if not psutil.pid_exists(pid)])
    folder = Path(util.get_temp_dir())
    (folder / f"{_mark()}{os.getpid()}").touch()
    return folder


def folders_of(host_pid: int) -> list[Path]:
    """What a host has made here."""
    return [folder for pid, folder in _marked() if pid == host_pid]


def remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _marked() -> Iterator[tuple[int, Path]]:
    mark = _mark()
    for path in list(Path(tempfile.gettempdir()).glob(f"pymp-*/{mark}*")):
        yield int(path.name.removeprefix(mark)), path.parent


def _mark() -> str:
    # A pid says who lives only on its machine and in its container, and several may share a folder.
    namespace = Path("/proc/self/ns/pid")
    space = os.readlink(namespace) if namespace.is_symlink() else ""
    return f"scaling-host-{socket.gethostname()}-{''.join(digit for digit in space if digit.isdigit())}-"
