"""The simulated kernel reports what the real one does: the same steps on both, and what epoll says after each."""

from __future__ import annotations

import select
import socket
import struct

import pytest

EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

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
]


def real_events(steps: list[str], expected: list[int]) -> list[int]:
    """The same over loopback; where an event is expected it is waited for."""
    with socket.create_server(("127.0.0.1", 0)) as listener, select.epoll() as epoll:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        with ours, peer:
            ours.setblocking(False)
            epoll.register(ours, EVENTS)
            seen = []
            for step, event in zip(["begin", *steps], expected, strict=True):
                try:
                    act(step, ours, peer)
                except OSError:  # of a connection that is over
                    assert step in ("recv", "shut")
                events = epoll.poll(5 if event else 0.03)
                seen.append(events[0][1] if events else 0)
    return seen


def act(step: str, ours: socket.socket, peer: socket.socket) -> None:
    if step == "data":
        peer.send(b"data")
    elif step == "fin":
        peer.shutdown(socket.SHUT_WR)
    elif step == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    elif step == "recv":
        ours.recv(64)
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
def test_epoll_reports_the_same(world, steps):
    simulated = world.kernel_events(steps)
    assert [f"{event:x}" for event in real_events(steps, simulated)] == [f"{event:x}" for event in simulated]
