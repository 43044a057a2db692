"""HAProxy, from Debian."""

from pathlib import Path

from .base import Command, DebianPeer

# What a stream of tokens needs: without `option http-no-delay` HAProxy may hold bytes back until there are more, and without
# `option abortonclose` a client that leaves before the answer, or in a silent stream, is noticed only when the backend sends.
CONFIGURATION = """\
global
    nbthread 1
    maxconn 9500

defaults
    mode http
    maxconn 9500
    backlog 4096
    option http-no-delay
    option abortonclose
    http-reuse always
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-request 1h
    timeout http-keep-alive 1h

frontend clients
    bind 127.0.0.1:{port}
{routing}"""


class Haproxy(DebianPeer):
    name = "haproxy"
    about = "one thread, mode http, options http-no-delay and abortonclose, http-reuse always, time-outs of an hour, no logs, no checks"
    package = "haproxy"
    version_option = "-v"

    def routing(self, backend_port: int) -> str:
        """The end of the front end, and the servers."""
        return f"    default_backend servers\n\nbackend servers\n    server backend 127.0.0.1:{backend_port}\n"

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        path = scratch / "haproxy.cfg"
        path.write_text(CONFIGURATION.format(port=port, routing=self.routing(backend_port)))
        return Command([str(self.program()), "-db", "-f", str(path)])
