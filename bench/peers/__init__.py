"""The proxies that the benchmark compares ours with: one file each, which says how it is installed and configured.

All get what serves streams best and is common to them: nothing buffered, connections to the backend kept, logs off,
time-outs out of the way, one worker. What a peer does beyond that by default, such as health checks, it does here too.

    python -m bench.peers install FOLDER [NAME ...]
    python -m bench.peers list FOLDER
"""

from .aiohttp_proxy import AiohttpProxy
from .base import Command, Peer
from .caddy import Caddy
from .envoy import Envoy
from .floor import Floor
from .haproxy import Haproxy
from .litellm import Litellm
from .llmpipe import Llmpipe
from .nginx import Nginx
from .run import PeerError, processes, start, stop
from .smg import Smg
from .vllm_router import VllmRouter

ALL: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Floor(),
        Llmpipe(),
        Haproxy(),
        Nginx(),
        Envoy(),
        Caddy(),
        VllmRouter(),
        Smg(),
        AiohttpProxy(),
        Litellm(),
    )
}

__all__ = ["ALL", "Command", "Peer", "PeerError", "processes", "start", "stop"]
