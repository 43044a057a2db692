"""The simulated kernel reports what the real one does: the same steps on both, and what epoll says after each."""

from __future__ import annotations

import select
import socket
import struct

import pytest

EVENTS = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

STEPS = [
    ["data", "recv", "data", "data", "recv", "recv"],
    ["fin", "recv", "recv"],
    ["data", "fin", "recv", "recv"],
    ["reset", "recv", "recv"],
    ["data", "reset", "recv", "recv", "recv"],
    ["fin", "shut", "recv"],
    ["shut", "data", "recv", "fin", "recv"],
    ["fill", "room", "data", "recv"],
    ["fill", "fin", "room"],
    ["fill", "data", "reset", "recv"],
    ["fill", "data", "room", "fin"],
    ["urgent", "recv", "recv", "data", "recv"],
    ["data", "urgent", "data", "peek", "recv", "recv", "recv"],
    ["data", "urgent", "recv", "recv", "data", "recv"],
    ["urgent", "urgent", "recv", "recv", "recv"],
    ["urgent", "data", "fin", "recv", "recv", "recv"],
    ["inline", "urgent", "recv", "recv", "data", "recv"],
    ["inline", "data", "urgent", "data", "peek", "recv", "recv", "recv"],
    ["inline", "urgent", "data", "fin", "recv", "recv", "recv"],
]


def real_events(steps: list[str], expected: list[int]) -> tuple[list[int], list[bytes | int | None]]:
    """The same over loopback; where an event is expected it is waited for."""
    with socket.create_server(("127.0.0.1", 0)) as listener, select.epoll() as epoll:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        with ours, peer:
            ours.setblocking(False)
            epoll.register(ours, EVENTS)
            seen: list[int] = []
            got: list[bytes | int | None] = []
            for step, event in zip(["begin", *steps], expected, strict=True):
                try:
                    act(step, ours, peer, got)
                except OSError:  # of a connection that is over
                    assert step == "shut"
                events = epoll.poll(5 if event else 0.03)
                seen.append(events[0][1] if events else 0)
    return seen, got


def act(step: str, ours: socket.socket, peer: socket.socket, got: list[bytes | int | None]) -> None:
    if step == "data":
        peer.send(b"data")
    elif step == "fin":
        peer.shutdown(socket.SHUT_WR)
    elif step == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    elif step == "urgent":
        peer.send(b"ab!", socket.MSG_OOB)
    elif step == "inline":
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    elif step in ("recv", "peek"):
        try:
            got.append(ours.recv(64, socket.MSG_PEEK if step == "peek" else 0))
        except BlockingIOError:
            got.append(None)
        except OSError as error:
            got.append(error.errno)
    elif step == "shut":
        ours.shutdown(socket.SHUT_WR)
    elif step == "fill":
        try:
            while True:
                ours.send(b"x" * 65536)
        except BlockingIOError:
            pass
    elif step == "room":
        peer.settimeout(0.2)
        try:
            while peer.recv(1 << 20):
                pass
        except TimeoutError:
            pass


@pytest.mark.parametrize("steps", STEPS, ids="-".join)
def test_epoll_reports_the_same_and_recv_gives_the_same(world, steps):
    simulated, given = world.kernel_events(steps)
    seen, got = real_events(steps, simulated)
    assert [f"{event:x}" for event in seen] == [f"{event:x}" for event in simulated]
    assert got == given


def test_a_listening_socket_that_is_shut_down_reports_the_same(world):
    with socket.create_server(("127.0.0.1", 0)) as listener, listener.dup() as other, select.epoll() as epoll:
        listener.setblocking(False)
        epoll.register(listener, EVENTS)
        assert not epoll.poll(0)
        other.shutdown(socket.SHUT_RDWR)
        [(_, event)] = epoll.poll(5)
        with pytest.raises(OSError, match="Invalid argument") as error:
            listener.accept()
    assert world.kernel_listener_shut() == (event, error.value.errno)


def test_a_connection_inherits_inline_urgent_data_from_its_listener(world):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        with socket.create_connection(listener.getsockname()) as peer, listener.accept()[0] as ours:
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
            peer.send(b"ab!", socket.MSG_OOB)
            assert ours.recv(2) == b"ab"
            assert ours.recv(1) == b"!"
