"""Entries that the cluster's tests run in ranks: each does one thing that a training may do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run(payload: dict[str, Any], seat: Any, link: Any) -> None:
    """Do what payload["act"] names."""
    {name: act for name, act in globals().items() if name.startswith("act_")}[f"act_{payload['act']}"](
        payload, seat, link
    )


def act_finish(payload: dict[str, Any], seat: Any, link: Any) -> None:
    """Heartbeat and leave a journal, at once."""
    link.heartbeat(7)
    print(f"rank {seat.rank} of {seat.world_size} prints")
    sys.stderr.write("and complains\n")
    if seat.rank == 0:
        with Path(payload["journal"]).open("a", encoding="utf-8") as journal:
            journal.write("first\nsecond\n")


def act_tell(payload: dict[str, Any], seat: Any, link: Any) -> None:
    """Write what it was given and finds around itself, as the journal."""
    import json

    facts = {
        "time": time.monotonic(),
        "seat": vars(seat),
        "environment": dict(os.environ),
        "main": repr(sys.modules["__main__"]),
        "modules": [name for name in ("torch", "ray", "cluster.host") if name in sys.modules],
    }
    if seat.rank == 0:
        Path(payload["journal"]).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def act_raise(payload: dict[str, Any], seat: Any, link: Any) -> None:
    if seat.rank == payload.get("rank", 0):
        raise ZeroDivisionError("the batch of rank 0 is empty")


def act_kill_self(payload: dict[str, Any], seat: Any, link: Any) -> None:
    if seat.rank == payload.get("rank", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    act_work(payload, seat, link)


def act_segfault(payload: dict[str, Any], seat: Any, link: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def act_hang(payload: dict[str, Any], seat: Any, link: Any) -> None:
    """Hold the interpreter's lock for ever, deaf to every Python signal handler and thread."""
    link.heartbeat(1)
    import re

    re.match(r"(a+)+$", "a" * 64 + "b")


def act_work(payload: dict[str, Any], seat: Any, link: Any) -> None:
    """Count steps until asked to leave; then say so in the journal."""
    step = 0
    while not link.should_leave():
        step += 1
        link.heartbeat(step)
        time.sleep(0.01)
    if seat.rank == 0 and "journal" in payload:
        Path(payload["journal"]).write_text(f"left at step {step}\n", encoding="utf-8")


def act_bear(payload: dict[str, Any], seat: Any, link: Any) -> None:
    """Start a process, tell its pid, work."""
    started = subprocess.Popen(["sleep", "600"])
    Path(payload["journal"]).write_text(f"{started.pid}\n", encoding="utf-8")
    act_work(payload, seat, link)


def act_meet(payload: dict[str, Any], seat: Any, link: Any) -> None:
    """Rank 0 listens on a port that it publishes; the others connect and send their rank."""
    if seat.rank == 0:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(30)
            link.publish("port", str(server.getsockname()[1]))
            greetings = []
            for _ in range(seat.world_size - 1):
                connection, _ = server.accept()
                greetings.append(connection.recv(100).decode())
        Path(payload["journal"]).write_text(" ".join(sorted(greetings)) + "\n", encoding="utf-8")
        return
    port = int(link.lookup("port", timeout_s=30))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{seat.rank}".encode())


def act_wait_in_vain(payload: dict[str, Any], seat: Any, link: Any) -> None:
    link.lookup("never", timeout_s=0.05)


def act_publish_much(payload: dict[str, Any], seat: Any, link: Any) -> None:
    link.publish("book", "x" * 5000)


def act_await_port(payload: dict[str, Any], seat: Any, link: Any) -> None:
    link.lookup("port", timeout_s=0.1)
