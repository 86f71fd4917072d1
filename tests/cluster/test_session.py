"""Addresses at which no Ray cluster answers: told apart quickly, with a way out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.resources import ClusterUnreachable
from cluster.session import bounded, check_address, connect

Serve = Callable[[bytes], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Listens, and answers whoever connects with some bytes."""
    servers = []

    def start(answer: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        connections = []

        def run() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    connections.append(connection)
                    connection.sendall(answer)
            except OSError:
                return

        threading.Thread(target=run, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=f"no Ray cluster answers at {address}: .*Check RAY_ADDRESS"):
        connect(address)
    assert time.monotonic() - began < 5.0


def test_ray_address_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterUnreachable, match=r"127\.0\.0\.1:1"):
        connect()


def test_a_port_that_keeps_silent_is_given_up(serve: Serve) -> None:
    began = time.monotonic()
    with pytest.raises(ClusterUnreachable, match="is not a Ray head: b''"):
        check_address(serve(b""), timeout_s=0.3)
    assert time.monotonic() - began < 2.0


def test_a_web_server_is_not_taken_for_ray(serve: Serve) -> None:
    with pytest.raises(ClusterUnreachable, match="is not a Ray head: b'HTTP"):
        check_address(serve(b"HTTP/1.1 400 Bad Request\r\n\r\n"))


def test_what_speaks_grpc_passes_for_a_head(serve: Serve) -> None:
    check_address(serve(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])))


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:port", ""])
def test_an_address_of_another_kind_is_refused_with_what_to_give(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not host:port\. Give the address of the head's GCS"):
        check_address(address)


def test_a_call_that_does_not_return_is_given_up() -> None:
    began = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=r"no answer within 0\.2 s\. The head sleeps\."):
        bounded(lambda: time.sleep(60), 0.2, "The head sleeps.")
    assert time.monotonic() - began < 2.0


def test_the_exit_that_ray_takes_when_it_cannot_connect_is_an_error_here() -> None:
    def leave() -> None:
        raise SystemExit(15)

    with pytest.raises(ClusterUnreachable, match=r"The head is gone\. Ray says: 15"):
        bounded(leave, 5.0, "The head is gone.")


def test_an_error_of_our_own_comes_through_a_bounded_call() -> None:
    with pytest.raises(KeyError):
        bounded(lambda: {}["missing"], 5.0, "")
