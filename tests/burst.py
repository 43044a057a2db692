"""How long an event of a stream waits behind a burst of connections; run by hand: python tests/burst.py [CONNECTIONS ...]

The proxy is stopped, the connections enter its backlog, an event is sent, and the proxy goes on: from then to the event's arrival.
It is no test, because it is a time. The proxy has the second CPU, everything else the first.
"""

import os
import signal
import socket
import statistics
import sys
import time

from harness import Backend, Client, Connection, Proxy, chunk, sse_head

from llmpipe.sockets import raise_descriptor_limit

ROUNDS = 25
PAUSE = 0.02  # seconds in which what was sent arrives
EVENT = chunk(b"data: x\n\n")


def begin_stream(connection: Connection) -> None:
    connection.read_request()
    connection.send(sse_head())


def delay(proxy: Proxy, client: Client, upstream: Connection, connections: int) -> float:
    """Seconds from the proxy's going on to the event's arrival."""
    proxy.signal(signal.SIGSTOP)
    time.sleep(PAUSE)
    burst = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(connections)]
    upstream.send(EVENT)
    time.sleep(PAUSE)
    begun = time.perf_counter()
    proxy.signal(signal.SIGCONT)
    client.recv_until(EVENT)
    taken = time.perf_counter() - begun
    proxy.wait_metric("llmpipe_clients", connections + 1)
    for one in burst:
        one.close()
    proxy.wait_metric("llmpipe_clients", 1)
    return taken


def main(bursts: list[int]) -> None:
    raise_descriptor_limit()
    os.sched_setaffinity(0, {0})
    with Backend(begin_stream) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        for thread in os.listdir(f"/proc/{proxy.pid}/task"):
            os.sched_setaffinity(int(thread), {1})
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        client.read_head()
        for connections in bursts:
            times = [delay(proxy, client, backend.connections[0], connections) * 1e6 for _ in range(ROUNDS)]
            print(f"{connections} connections: median {statistics.median(times):.0f} us, least {min(times):.0f} us")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [0, 64, 2000])
