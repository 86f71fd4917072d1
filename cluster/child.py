"""What a rank's forked child does: takes its seat, runs the entry, tells its host how it went."""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from cluster.leash import LEASH_SIGNAL, die_with_parent, kill_group
from cluster.resources import Seat

# A published value is a port or a path. Small ones never fill a socket's buffer, so that no side blocks on the other.
MAX_PUBLISHED_CHARACTERS = 4096

# The end of a traceback names the error; deep recursions make the beginning long.
MAX_TRACEBACK_CHARACTERS = 65_536

STACKS_SIGNAL = signal.SIGUSR1


@dataclass(frozen=True)
class RankTask:
    """What one rank is to do."""

    entry: str
    payload: dict[str, Any]
    seat: Seat
    log_path: str


def resolve(entry: str) -> Callable[..., object]:
    """The function named "module:function". Raises ValueError, ImportError or AttributeError."""
    module, _, function = entry.partition(":")
    if not module or not function:
        raise ValueError(f"entry: {entry!r} does not name a function. Write 'module:function'.")
    found: Callable[..., object] = getattr(importlib.import_module(module), function)
    return found


class HostLink:
    """A rank's line to its host: the `Link` that `entry` receives.

    Heartbeats are two stores into memory shared with the host. Keys arrive in a thread of their own, which also ends
    this process and its group when the host is gone.
    """

    def __init__(self, channel: Connection, progress: Any) -> None:
        self._channel = channel
        self._progress = progress
        self._known: dict[str, str] = {}
        self._news = threading.Condition()
        self._sending = threading.Lock()
        self._leave = False
        threading.Thread(target=self._listen, name="host-link", daemon=True).start()

    def heartbeat(self, step: int) -> None:
        self._progress[0] = step
        self._progress[1] = time.monotonic_ns()

    def publish(self, key: str, value: str) -> None:
        """Make a small value known to all ranks of this attempt. Raises ValueError above 4096 characters."""
        if len(key) + len(value) > MAX_PUBLISHED_CHARACTERS:
            raise ValueError(
                f"publish({key[:40]!r}): {len(key) + len(value)} characters exceed {MAX_PUBLISHED_CHARACTERS}. "
                "Write large values to shared storage and publish their path."
            )
        self._learn({key: value})
        self._send("published", key, value)

    def lookup(self, key: str, timeout_s: float) -> str:
        """Wait for a published value. Raises TimeoutError."""
        with self._news:
            if self._news.wait_for(lambda: key in self._known, timeout_s):
                return self._known[key]
        raise TimeoutError(f"lookup({key!r}): no rank published it within {timeout_s:g} s")

    def should_leave(self) -> bool:
        return self._leave

    def ask_to_leave(self, *_: object) -> None:
        """Signal handler of SIGTERM, and what the host's `leave` does."""
        self._leave = True

    def fail(self, error_type: str, text: str) -> None:
        """Tell the host of an exception, before leaving."""
        self._send("failed", error_type, text)

    def _send(self, *message: str) -> None:
        with self._sending:
            try:
                self._channel.send(message)
            except OSError:
                # The host is gone; the listening thread is ending this process.
                return

    def _learn(self, values: dict[str, str]) -> None:
        with self._news:
            self._known.update(values)
            self._news.notify_all()

    def _listen(self) -> None:
        parent = parent_process()
        assert parent is not None, "a rank is always the child of a host"
        while True:
            if parent.sentinel in wait([self._channel, parent.sentinel]):
                break
            try:
                message = self._channel.recv()
            except (EOFError, OSError):
                break
            if message is None:
                self._leave = True
            else:
                self._learn(message)
        kill_group(os.getpid())
        os._exit(1)


def run_rank(task: RankTask, channel: Connection, progress: Any) -> None:
    """Body of a forked child. Exits 0 after `entry` returned and 1 after an exception, which the host receives."""
    # A group of its own: what the entry starts is killed with it.
    os.setpgid(0, 0)
    signal.signal(LEASH_SIGNAL, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)
    _write_output_to(task.log_path)
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    # Ctrl-C at a terminal reaches every process in front of it: what to do about it is the controller's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = HostLink(channel, progress)
    signal.signal(signal.SIGTERM, link.ask_to_leave)
    os.environ.update(_rank_environment(task.seat))
    try:
        resolve(task.entry)(task.payload, task.seat, link)
    except Exception as error:  # Isolation boundary: whatever an entry raises becomes data for the controller.
        text = traceback.format_exc()
        sys.stderr.write(text)
        link.fail(type(error).__name__, text[-MAX_TRACEBACK_CHARACTERS:])
        sys.exit(1)


def missing_imports(modules: tuple[str, ...], entry: str, channel: Connection) -> None:
    """Body of the first child of a fork server: sends the tracebacks of what cannot be imported.

    Python 3.11's fork server swallows the ImportError of a preload, and each attempt would import it anew.
    """
    failures = []
    for module in modules:
        if module in sys.modules:
            continue
        try:
            importlib.import_module(module)
        except Exception:  # Isolation boundary: an import may raise anything.
            failures.append(f"preload {module!r}:\n{traceback.format_exc()}")
    try:
        resolve(entry)
    except Exception:  # Isolation boundary: an import may raise anything.
        failures.append(f"entry {entry!r}:\n{traceback.format_exc()}")
    channel.send("\n".join(failures))
    channel.close()


def _write_output_to(log_path: str) -> None:
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # What a killed rank has printed is in its log, up to the last line.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _rank_environment(seat: Seat) -> dict[str, str]:
    """The names that torch and DeepSpeed read."""
    return {
        "RANK": str(seat.rank),
        "WORLD_SIZE": str(seat.world_size),
        "LOCAL_RANK": str(seat.local_rank),
        "LOCAL_WORLD_SIZE": str(seat.local_world_size),
    }
