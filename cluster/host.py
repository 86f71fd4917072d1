"""Owns one node's seats of a gang: a preloaded fork server, one forked child per rank and attempt, one at a time.

A Host owns its process: multiprocessing has one fork server a process, and what it inherits (environment, import path)
is set here before it starts. So every gang has a process per node: a Ray actor, or a `HostProcess` (cluster/
host_process.py). The host never imports what it preloads. A fork server with torch and DeepSpeed takes 5 to 10 s to
come up; then a child is at its entry in some hundredths of a second, and takes its leaks and crashes with it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from cluster import socket_folder
from cluster.child import STACKS_SIGNAL, RankTask, missing_imports, run_rank
from cluster.journal_tail import read_new_lines
from cluster.leash import kill_group
from cluster.resources import GangLost, RankReport, Seat

# Guess, generous: imports from a network file system that many nodes read at once.
START_TIMEOUT_S = 300.0

# SIGKILL takes effect at once except in an uninterruptible system call (a hung network file system).
KILL_TIMEOUT_S = 10.0

# For the stacks that a hanging rank writes into its log before it is killed.
STACKS_GRACE_S = 0.05

# A child's last message is in the socket when its exit is seen; longer means that a process it started holds the line.
DRAIN_TIMEOUT_S = 0.5


@dataclass(frozen=True)
class HostReport:
    """Answer of one host to a poll: what its gang merges into a GangReport."""

    attempt_id: str
    journal_text: str
    next_offset: int
    ranks: tuple[RankReport, ...]
    published: dict[str, str]


@dataclass
class _Rank:
    """One rank of the current attempt, as its host knows it."""

    seat: Seat
    process: ForkServerProcess
    channel: Connection
    progress: Any
    log_path: str
    pid: int = 0
    exit_code: int | None = None
    error: str = ""
    error_type: str = ""
    drained: threading.Event = field(default_factory=threading.Event)


class Host:
    """One node's part of a gang. Its methods may be called from several threads."""

    def __init__(self, entry: str, preload: tuple[str, ...], environment: dict[str, str], node_id: str) -> None:
        """Returns when the fork server has answered with its first child. Raises ImportError, GangLost."""
        self.node_id = node_id
        self._entry = entry
        self._lock = threading.RLock()
        self._attempt_id = ""
        self._journal_path: Path | None = None
        self._ranks: list[_Rank] = []
        # What the ranks here have published, and the order in which channels are written.
        self._published: dict[str, str] = {}
        self._channels_lock = threading.Lock()
        # The leash of the fork server is tied to the thread that starts it, so one thread does, and lives as long.
        self._forking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forking")
        os.environ.update(environment)
        self._socket_folders = [socket_folder.claim()]
        self._context = multiprocessing.get_context("forkserver")
        self._preload = ("cluster.leash", "cluster.child", *preload)
        entry_module = entry.partition(":")[0]
        self._context.set_forkserver_preload([*self._preload, entry_module])
        _forget_main_module()
        try:
            self._check_imports()
        except BaseException:
            socket_folder.remove(self._socket_folders)
            raise

    def assign(
        self,
        attempt_id: str,
        payload: dict[str, Any],
        seats: tuple[Seat, ...],
        journal_path: str,
        log_dir: str,
    ) -> None:
        """Fork one child per seat. `journal_path` is read here if rank 0 sits here.

        Raises RuntimeError while the attempt before is running, OSError when the logs cannot be written.
        """
        with self._lock:
            running = [rank.seat.rank for rank in self._ranks if self._exit_code(rank) is None]
            if running:
                raise RuntimeError(
                    f"attempt {attempt_id}: ranks {running} of attempt {self._attempt_id} are still running on node "
                    f"{self.node_id}. Kill it, or poll until it has finished."
                )
            Path(log_dir).mkdir(parents=True, exist_ok=True)
            self._attempt_id = attempt_id
            self._journal_path = Path(journal_path) if any(seat.rank == 0 for seat in seats) else None
            self._published = {}
            self._ranks = []
            # Appended one by one: when a fork fails half-way, `kill` finds the others.
            for seat in seats:
                self._ranks.append(self._start_rank(seat, payload, str(Path(log_dir) / f"rank-{seat.rank}.log")))
            arguments = (self._ranks, self._published)
            threading.Thread(target=self._listen, args=arguments, name="ranks", daemon=True).start()

    def poll(self, offset: int) -> HostReport:
        """State of the ranks here, then the journal: a rank that is seen to have left has no line unread.

        Raises GangLost when the journal is there and cannot be read: the storage has failed, or this node's view of it.
        """
        with self._lock:
            reports = tuple(self._report(rank) for rank in self._ranks)
            text, next_offset = "", offset
            if self._journal_path is not None:
                finished = all(report.exit_code is not None for report in reports)
                try:
                    text, next_offset = read_new_lines(self._journal_path, offset, to_end=finished)
                except OSError as error:
                    raise GangLost(f"node {self.node_id} cannot read the attempt's journal: {error}") from error
            return HostReport(self._attempt_id, text, next_offset, reports, dict(self._published))

    def deliver(self, attempt_id: str, values: dict[str, str]) -> None:
        """Make known here what ranks on other hosts have published."""
        with self._lock:
            if attempt_id == self._attempt_id:
                self._send_to_ranks(values)

    def leave(self) -> None:
        """Ask the ranks here to checkpoint and leave."""
        with self._lock:
            # By the channel rather than by SIGTERM, which does the same: a child that has only just been forked
            # receives it too, and a process that took over a dead child's pid does not.
            self._send_to_ranks(None)

    def kill(self) -> None:
        """End all ranks here at once, their stacks in their logs. Raises GangLost if one survives SIGKILL for 10 s."""
        with self._lock:
            alive = [rank for rank in self._ranks if self._exit_code(rank) is None]
            for rank in alive:
                _signal(rank.pid, STACKS_SIGNAL)
            if alive:
                time.sleep(STACKS_GRACE_S)
            for rank in alive:
                kill_group(rank.pid)
                # The fork server may not have let it make its group yet.
                _signal(rank.pid, 9)
            deadline = time.monotonic() + KILL_TIMEOUT_S
            for rank in alive:
                wait([rank.process.sentinel], max(0.0, deadline - time.monotonic()))
                if self._exit_code(rank) is None:
                    raise GangLost(
                        f"rank {rank.seat.rank} (pid {rank.pid}) on node {self.node_id} survives SIGKILL for "
                        f"{KILL_TIMEOUT_S:g} s: it hangs in the kernel, most likely on a file system"
                    )

    def ready(self) -> None:
        """Answers: a Host that exists has its fork server."""

    def close(self) -> None:
        """End the ranks. The fork server leaves when this process does."""
        try:
            self.kill()
        finally:
            socket_folder.remove(self._socket_folders)
            self._forking.shutdown()

    def _check_imports(self) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        with receiver:
            process = self._context.Process(target=missing_imports, args=(self._preload, self._entry, sender))
            try:
                self._fork(process)
                sender.close()
                failures = receiver.recv()
                process.join()
            except (EOFError, OSError) as error:
                raise ImportError(self._import_failure(self._preload)) from error
        process.close()
        if failures:
            raise ImportError(f"on node {self.node_id}, with PYTHONPATH={os.environ.get('PYTHONPATH')!r}:\n{failures}")

    def _import_failure(self, modules: tuple[str, ...]) -> str:
        """Why the fork server died at its preloads: it does not say, a plain interpreter does."""
        command = [sys.executable, "-c", f"import {', '.join([*modules, self._entry.partition(':')[0]])}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
        return f"on node {self.node_id} the fork server ended while it imported {modules}:\n{done.stderr[-4000:]}"

    def _fork(self, process: ForkServerProcess) -> None:
        try:
            self._forking.submit(process.start).result(START_TIMEOUT_S)
        except FutureTimeoutError as error:
            raise GangLost(
                f"the fork server on node {self.node_id} did not fork within {START_TIMEOUT_S:g} s. An import that "
                "waits for a lock file is the usual reason: see `scaling doctor`."
            ) from error

    def _start_rank(self, seat: Seat, payload: dict[str, Any], log_path: str) -> _Rank:
        # Opened here first, so that a folder that cannot be written is the caller's error and not a silent child.
        with open(log_path, "ab"):
            pass
        channel, far_end = self._context.Pipe()
        progress = self._context.RawArray("q", [0, time.monotonic_ns()])
        process = self._context.Process(
            target=run_rank,
            args=(RankTask(self._entry, payload, seat, log_path), far_end, progress),
            name=f"{seat.attempt_id} rank {seat.rank}",
        )
        with far_end:
            self._fork(process)
        rank = _Rank(seat, process, channel, progress, log_path)
        assert process.pid is not None
        rank.pid = process.pid
        return rank

    def _exit_code(self, rank: _Rank) -> int | None:
        """The exit code of a rank, once it has one. Then gives back what it held here, and ends what it left behind."""
        if rank.exit_code is None and rank.process.exitcode is not None:
            rank.exit_code = rank.process.exitcode
            rank.process.close()
            kill_group(rank.pid)
        return rank.exit_code

    def _report(self, rank: _Rank) -> RankReport:
        exit_code = self._exit_code(rank)
        if exit_code is not None:
            rank.drained.wait(DRAIN_TIMEOUT_S)
        step, progressed_ns = rank.progress
        return RankReport(
            rank=rank.seat.rank,
            pid=rank.pid,
            node_id=self.node_id,
            step=step,
            seconds_since_progress=(time.monotonic_ns() - progressed_ns) / 1e9,
            exit_code=exit_code,
            error=rank.error,
            error_type=rank.error_type,
            log_path=rank.log_path,
        )

    def _listen(self, ranks: list[_Rank], published: dict[str, str]) -> None:
        """Thread of one attempt: takes in what its ranks say, until all have left."""
        by_channel = {rank.channel: rank for rank in ranks}
        while by_channel:
            for ready in wait(list(by_channel)):
                assert isinstance(ready, Connection)
                rank = by_channel[ready]
                try:
                    kind, name, text = ready.recv()
                except (EOFError, OSError):
                    del by_channel[ready]
                    with self._channels_lock:
                        ready.close()
                    rank.drained.set()
                    continue
                if kind == "failed":
                    rank.error_type, rank.error = name, text
                else:
                    published[name] = text
                    _send({name: text}, ranks, self._channels_lock)

    def _send_to_ranks(self, message: dict[str, str] | None) -> None:
        _send(message, self._ranks, self._channels_lock)


def _send(message: dict[str, str] | None, ranks: list[_Rank], lock: threading.Lock) -> None:
    with lock:
        for rank in ranks:
            if rank.channel.closed:
                continue
            try:
                rank.channel.send(message)
            except OSError:
                # It has died; its exit code says so.
                continue


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _forget_main_module() -> None:
    """Keep children from importing this process's main script again, which takes 0.45 s in a Ray worker."""
    main = sys.modules["__main__"]
    main.__spec__ = None
    if hasattr(main, "__file__"):
        del main.__file__
