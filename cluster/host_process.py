"""A Host in a child process of the controller, spoken to over a socket pair. Both ends of the conversation.

The host lives as long as the controller's end of the socket: a controller killed by SIGKILL leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from typing import Any

from cluster.gang import Reply
from cluster.host import Host
from cluster.resources import GangLost

# An orderly end takes some hundredths of a second; a frozen host is killed after this, and its ranks with it.
CLOSE_TIMEOUT_S = 3.0


class HostProcess:
    """The controller's handle of a host beside it. Not for several threads at once: its gang takes turns."""

    def __init__(self, entry: str, preload: tuple[str, ...], environment: dict[str, str], node_id: str) -> None:
        """Starts the process; `send("ready")` waits for its fork server."""
        self.node_id = node_id
        # What the interpreter and imports print, for the message if the process dies. Unlinked: it leaves no file.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process, in `close`
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from cluster.host_process import serve; serve({theirs.fileno()})"],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                # Out of the terminal's foreground group: Ctrl-C is for the controller, which then asks ranks to leave.
                process_group=0,
            )
        self._channel = Connection(ours.detach())
        self._transmit((entry, preload, environment, node_id))

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, method: str, *arguments: Any) -> Reply:
        self._transmit((method, arguments))
        return self._receive

    def close(self) -> None:
        if self._output.closed:
            return
        # The end of the conversation: the host ends its ranks and leaves.
        self._channel.close()
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _transmit(self, message: object) -> None:
        try:
            self._channel.send(message)
        except OSError as error:
            raise self._lost() from error

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self._channel.poll(timeout_s):
                raise GangLost(f"its host (pid {self.pid}) has not answered for {timeout_s:g} s: frozen")
            raised, answer = self._channel.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if raised:
            raise answer
        return answer

    def _lost(self) -> GangLost:
        code = self._process.poll()
        self._output.seek(0)
        output = self._output.read().decode(errors="replace")[-2000:]
        return GangLost(f"its host (pid {self.pid}) is gone, exit code {code}. It printed: {output or 'nothing'}")


def serve(descriptor: int) -> None:
    """Main loop of the host's process: answers each call in turn, until the controller hangs up."""
    # A signal to the whole job (Slurm, a terminal) is for the ranks, which have handlers of their own.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Connection(descriptor)
    try:
        host = Host(*channel.recv())
    except Exception as error:  # Isolation boundary: the controller raises it where it asked.
        channel.recv()
        channel.send((True, _with_traceback(error)))
        return
    while True:
        try:
            method, arguments = channel.recv()
        except EOFError:
            break
        try:
            channel.send((False, getattr(host, method)(*arguments)))
        except Exception as error:  # Isolation boundary: the controller raises it where it asked.
            channel.send((True, _with_traceback(error)))
    try:
        host.close()
    finally:
        # At once: an orderly exit would wait for children that SIGKILL does not end.
        os._exit(0)


def _with_traceback(error: Exception) -> Exception:
    error.add_note(f"in the host's process:\n{traceback.format_exc()}")
    return error
