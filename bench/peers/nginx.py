"""nginx, from Debian."""

import resource
from pathlib import Path

from .base import Command, DebianPeer

# One worker with its connections on both sides: `worker_connections` counts clients and backends alike. The temporary
# folders are never written to, as nothing is buffered, but nginx makes them when it starts.
CONFIGURATION = """\
worker_processes 1;
worker_rlimit_nofile {descriptors};
daemon off;
pid {scratch}/nginx.pid;
error_log stderr error;

events {{
    worker_connections {descriptors};
}}

http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_header_timeout 1h;
    client_body_timeout 1h;
    send_timeout 1h;

    client_body_temp_path {scratch}/nginx-body;
    proxy_temp_path {scratch}/nginx-proxy;
    fastcgi_temp_path {scratch}/nginx-fastcgi;
    uwsgi_temp_path {scratch}/nginx-uwsgi;
    scgi_temp_path {scratch}/nginx-scgi;

{upstreams}
    server {{
        listen 127.0.0.1:{port} backlog=4096;

        location / {{
            proxy_pass http://{upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_connect_timeout 5s;
            proxy_send_timeout 1h;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""

UPSTREAM = """\
    upstream {name} {{
        server {address} max_fails=0;
        keepalive 1024;
        keepalive_requests 1000000000;
        keepalive_time 24h;
        keepalive_timeout 1h;
    }}
"""


class Nginx(DebianPeer):
    name = "nginx"
    about = (
        "one worker, proxy_buffering off, proxy_request_buffering off, up to 1,024 idle backend connections, "
        "time-outs of an hour, no logs"
    )
    package = "nginx"
    version_option = "-v"

    def upstream(self, name: str, address: str) -> str:
        """A server and the connections that are kept to it."""
        return UPSTREAM.format(name=name, address=address)

    def configuration(self, backend_port: int) -> tuple[str, str]:
        """The upstreams, and which one a request goes to."""
        return self.upstream("backend", f"127.0.0.1:{backend_port}"), "backend"

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        # Some are the worker's own: its log, its epoll, its listening socket.
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        path = scratch / "nginx.conf"
        upstreams, upstream = self.configuration(backend_port)
        path.write_text(
            CONFIGURATION.format(
                descriptors=descriptors, scratch=scratch, port=port, upstreams=upstreams, upstream=upstream
            )
        )
        return Command([str(self.program()), "-e", "stderr", "-p", str(scratch), "-c", str(path)])
