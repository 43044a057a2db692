"""LiteLLM's proxy, from PyPI."""

import json
from pathlib import Path

from .base import Command, PipPeer

# It is a gateway that understands requests rather than a forwarder: it parses each event and writes it anew.
# Whatever would reach for the network at start has a switch here.
OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_TELEMETRY": "False",
    "HF_HUB_OFFLINE": "1",
}


class Litellm(PipPeer):
    name = "litellm"
    about = "one uvicorn worker, model openai/bench, client headers forwarded, no database, no callbacks, no retries"
    requirements = ("litellm[proxy]",)
    program = "litellm"

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        configuration = {
            "model_list": [
                {
                    "model_name": "bench",
                    "litellm_params": {
                        "model": "openai/bench",
                        "api_base": f"http://127.0.0.1:{backend_port}/v1",
                        "api_key": "none",
                    },
                }
            ],
            "general_settings": {"forward_client_headers_to_llm_api": True},
            "litellm_settings": {"request_timeout": 3600, "telemetry": False},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        }
        path = scratch / "litellm.yaml"
        path.write_text(json.dumps(configuration, indent=1))  # JSON is YAML, and nobody has to quote it
        argv = [str(self.bin(folder, self.program)), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        env = {
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no key, as none of the peers asks for one
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "DISABLE_ADMIN_UI": "True",
        }
        return Command([*argv, "--num_workers", "1", "--keepalive_timeout", "3600"], {**OFFLINE, **env})
