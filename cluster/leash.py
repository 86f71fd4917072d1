"""Ties a fork server to the life of its host. Preloaded first in every fork server, where it acts on import.

The host's death must end its children even while they are stopped or stuck in C code, so no thread of theirs can be
relied upon. Linux signals a process when the thread that started it ends (PR_SET_PDEATHSIG): the fork server then
kills the process group of every child, removes its socket and leaves. A child gets SIGKILL when the fork server dies.

Elsewhere than on Linux children notice through the sentinel of their host alone (cluster/child.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

import psutil

from cluster.socket_folder import folders_of, remove

PR_SET_PDEATHSIG = 1

# One that nobody else sends: SIGHUP comes at logout, also to programs that `nohup` should keep, SIGUSR2 from Slurm.
LEASH_SIGNAL = signal.SIGRTMIN + 7 if sys.platform == "linux" else signal.SIGHUP


def die_with_parent(signal_number: int) -> None:
    """Have this process signalled when its parent ends. Without effect elsewhere than on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def kill_group(pid: int) -> None:
    """SIGKILL a child, and whatever it has started. Silent when nothing is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _end_with(socket_folders: list[Path]) -> None:
    # It comes twice: when the host's thread ends, and when the host does.
    signal.signal(LEASH_SIGNAL, signal.SIG_IGN)
    for child in psutil.Process().children():
        kill_group(child.pid)
        # A child that has not yet made its own group.
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    remove(socket_folders)
    os._exit(0)


def _in_fork_server() -> bool:
    return any("multiprocessing.forkserver" in word for word in sys.orig_argv)


if _in_fork_server():
    # Found now: a signal handler must not wait for a lock that what it interrupts may hold.
    _of_the_host = folders_of(os.getppid())
    signal.signal(LEASH_SIGNAL, lambda *_: _end_with(_of_the_host))
    # Both mean something to a rank, which installs its handlers after the fork: no window may exist in which they kill.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    die_with_parent(LEASH_SIGNAL)
