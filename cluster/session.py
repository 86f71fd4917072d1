"""The controller's connection to Ray: found, checked and bounded in time before anything relies on it.

With an address (given, or RAY_ADDRESS) that cluster is used; without one a Ray of our own starts on this machine and
ends with the session. `ray.init` waits two minutes for an address that is dead and then ends the process, so the
address is spoken to first, and every call that needs the cluster's head goes through `bounded`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cluster.cores import usable_cores
from cluster.import_path import import_path
from cluster.resources import ClusterUnreachable

Value = TypeVar("Value")

# A head that lives answers in milliseconds; this covers a slow link.
ADDRESS_TIMEOUT_S = 5.0

# Joining takes 0.1 to 2 s, starting a Ray on this machine 3 to 10 s on two busy cores.
CONNECT_TIMEOUT_S = 15.0
START_TIMEOUT_S = 90.0

# Only control messages pass through the object store; Ray's default takes 30 % of the memory.
OBJECT_STORE_BYTES = 128 * 2**20

# HTTP/2 (RFC 9113, sec. 3.4): the client's preface and an empty SETTINGS frame. A gRPC server answers with SETTINGS.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
HTTP2_FRAME_HEADER_BYTES = 9
HTTP2_SETTINGS = 4


@dataclass(frozen=True)
class Session:
    """A connection of this process to Ray. `owned` if it was made here, and is then ended with it."""

    address: str
    owned: bool

    def close(self) -> None:
        import ray

        if self.owned and ray.is_initialized():
            ray.shutdown()


def connect(address: str | None = None) -> Session:
    """Join the cluster at `address` or RAY_ADDRESS, or start one here. Raises ClusterUnreachable, ValueError."""
    import ray

    if ray.is_initialized():
        return Session(ray.get_runtime_context().gcs_address, owned=False)
    # Ray reports its use over the network unless told otherwise: that is for whoever runs the cluster to decide.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if wanted == "local":
        bounded(
            lambda: ray.init(
                address="local",
                num_cpus=usable_cores(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                runtime_env=_runtime_env(),
                **quiet,
            ),
            START_TIMEOUT_S,
            "Ray did not start on this machine. See /tmp/ray/session_latest/logs, or use execution.launcher: inline.",
            keep_thread=True,
        )
    else:
        check_address(wanted)
        bounded(
            lambda: ray.init(address=wanted, runtime_env=_runtime_env(), **quiet),
            CONNECT_TIMEOUT_S,
            f"The Ray cluster at {wanted} did not take us in. {_WAY_OUT}",
        )
    return Session(ray.get_runtime_context().gcs_address, owned=True)


def check_address(address: str, timeout_s: float = ADDRESS_TIMEOUT_S) -> None:
    """Returns if something that speaks gRPC answers at host:port. Raises ClusterUnreachable, ValueError."""
    if address == "auto":
        return
    host, separator, port = address.rpartition(":")
    if "//" in address or not separator or not port.isdigit():
        raise ValueError(
            f"Ray address {address!r} is not host:port. Give the address of the head's GCS, such as 10.0.0.1:6379; "
            "for a Ray Client (ray://) or dashboard (http://) address start `scaling` on the cluster instead."
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as connection:
            connection.sendall(HTTP2_PREFACE)
            answer = _read(connection, HTTP2_FRAME_HEADER_BYTES, time.monotonic() + timeout_s)
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(f"no Ray cluster answers at {address}: {error}. {_WAY_OUT}") from error
    if len(answer) < HTTP2_FRAME_HEADER_BYTES or answer[3] != HTTP2_SETTINGS:
        raise ClusterUnreachable(f"what answers at {address} is not a Ray head: {answer!r}. {_WAY_OUT}")


def bounded(call: Callable[[], Value], timeout_s: float, complaint: str, *, keep_thread: bool = False) -> Value:
    """The call's result, if it comes in time. Raises ClusterUnreachable otherwise, or when Ray cannot connect.

    The call goes on in its thread after that; Ray's own calls to a head that is gone cannot be broken off.
    `keep_thread` is for calls that start processes: Ray's die with the thread that started them (PR_SET_PDEATHSIG).
    """
    outcome: list[tuple[Value | None, BaseException | None]] = []

    from ray.exceptions import RayError

    def attempt() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # SystemExit too: `ray.init` ends its process when it cannot connect.
            outcome.append((None, error))
        done.set()
        if keep_thread:
            threading.Event().wait()

    done = threading.Event()
    threading.Thread(target=attempt, name="ray-call", daemon=True).start()
    if not done.wait(timeout_s):
        raise ClusterUnreachable(f"no answer within {timeout_s:g} s. {complaint}")
    value, error = outcome[0]
    if isinstance(error, (ConnectionError, SystemExit, RuntimeError, RayError)):
        raise ClusterUnreachable(f"{complaint} Ray says: {error}") from error
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


_WAY_OUT = (
    "Check RAY_ADDRESS and that the head runs (`ray status`), or unset it to use this machine alone; "
    "`scaling doctor` tells more."
)


def _runtime_env() -> dict[str, object]:
    # Workers import `cluster` to make host actors. On other nodes the package must be installed.
    return {"env_vars": {"PYTHONPATH": import_path()}}


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    with contextlib.suppress(TimeoutError):
        while len(data) < count and (remaining := deadline - time.monotonic()) > 0:
            connection.settimeout(remaining)
            part = connection.recv(count - len(data))
            if not part:
                break
            data += part
    return data
