"""Rule I2: `llmpipe import` makes a file that can be served of one of LiteLLM, llama-swap or nginx, and says what it left out."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Backend, Client, Connection, Proxy, respond
from test_mock import Mock

from llmpipe import config_file
from llmpipe.errors import UsageError
from llmpipe.importer import command, credentials
from llmpipe.importer.document import MOST_BYTES
from llmpipe.importer.draft import Draft, toml_key, toml_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.timeout(180)

SECRETS = [
    "sk-litellm-master-1234",
    "sk-backend-5678",
    "hunter2-of-redis",
    "postgres://litellm:pw-of-db@db/litellm",
    "pw-of-db",
    "hf_AbCdEfGhIjKlMnOp",
    "sk-swap-client-key",
    "peer-key-without-a-shape",
    "cloud-key-9999",
    "basic-auth-user:pass-word-1",
    "c2VjcmV0LW9mLW5naW54",
    "arg-key-of-nginx",
]


def llmpipe(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    return subprocess.run(
        [sys.executable, "-m", "llmpipe", *words],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
        env={**inherited, **(env or {})},
    )


class Imported:
    """What came of a file."""

    def __init__(self, kind: str, path: Path) -> None:
        made = command.convert(kind, str(path))
        self.text = made.text
        self.counts = (made.pools, made.backends, made.lost)
        self.values: dict[str, Any] = tomllib.loads(made.text)
        self.file = config_file.parse("made.toml", made.text.encode())
        lines = " ".join(line.removeprefix("#").strip() for line in made.text.splitlines() if line.startswith("#"))
        self.comments = " ".join(lines.split())
        assert self.text.count("# not carried over: ") == made.lost
        assert not [secret for secret in SECRETS if secret in self.text]

    @property
    def pools(self) -> dict[str, Any]:
        return self.values["pools"]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Imported]:
    """make(kind, text): what comes of a file with this text."""

    def put(kind: str, text: str | bytes, name: str = "config") -> Imported:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Imported(kind, path)

    return put


LITELLM = """
model_list:
  - model_name: llama-3.3-70b
    litellm_params:
      model: hosted_vllm/meta-llama/Llama-3.3-70B-Instruct
      api_base: http://gpu1:8000/v1
      api_key: sk-backend-5678
      weight: 2
      order: 3
      rpm: 600
    model_info: {mode: chat, input_cost_per_token: 0}
  - model_name: llama-3.3-70b
    litellm_params:
      model: hosted_vllm/meta-llama/Llama-3.3-70B-Instruct
      api_base: http://gpu2:8000/v1/
      api_key: none
    model_info: {order: 3}
  - model_name: llama-3.3-70b
    litellm_params:
      model: openai/meta-llama/Llama-3.3-70B-Instruct
      api_base: http://last:8000
  - model_name: llama-3.3-70b
    litellm_params:
      model: openai/meta-llama/Llama-3.3-70B-Instruct
      api_base: http://spare:8000
      order: 7
  - model_name: qwen3
    litellm_params: {model: "ollama_chat/qwen3:8b", timeout: 900}
  - model_name: nomic
    litellm_params: {model: openai/nomic, api_base: os.environ/EMBED_BASE}
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-eu
      api_base: https://example.openai.azure.com/
      api_key: cloud-key-9999
  - model_name: claude
    litellm_params: {model: anthropic/claude-sonnet, api_key: os.environ/ANTHROPIC_API_KEY}
  - model_name: tls
    litellm_params: {model: openai/tls, api_base: "https://gpu9:8000/v1"}
  - model_name: deep
    litellm_params: {model: openai/deep, api_base: "http://gpu9:8000/llm"}
  - model_name: keyed
    litellm_params: {model: openai/keyed, api_base: "http://basic-auth-user:pass-word-1@gpu9:8000/v1"}
environment_variables:
  EMBED_BASE: http://embed:7997/v1
litellm_settings:
  drop_params: true
  json_logs: true
  success_callback: [langfuse]
router_settings:
  routing_strategy: usage-based-routing-v2
  num_retries: 2
  timeout: 300
  redis_host: redis.internal
  redis_password: hunter2-of-redis
  model_group_alias:
    gpt-4: llama-3.3-70b
    gpt-3.5-turbo: {model: qwen3, hidden: true}
    opus: claude
  fallbacks: [{llama-3.3-70b: [gpt-4o]}]
general_settings:
  master_key: sk-litellm-master-1234
  database_url: postgres://litellm:pw-of-db@db/litellm
"""


def test_i2_litellm(make: Callable[..., Imported]) -> None:
    made = make("litellm", LITELLM)
    assert made.counts[:2] == (3, 6)
    assert list(made.pools) == ["llama-3.3-70b", "qwen3", "nomic"]
    name = "meta-llama/Llama-3.3-70B-Instruct"
    assert made.pools["llama-3.3-70b"] == {
        "aliases": {"llama-3.3-70b": name, "gpt-4": name},
        "ttft_timeout": 300,
        "idle_timeout": 300,
        "retry": {"statuses": [429, 502, 503]},
        "backends": [
            {"url": "http://gpu1:8000", "weight": 2},
            {"url": "http://gpu2:8000"},
            {"url": "http://spare:8000", "tier": 1},
            {"url": "http://last:8000", "tier": 2},
        ],
    }
    assert made.pools["qwen3"]["aliases"] == {"qwen3": "qwen3:8b", "gpt-3.5-turbo": "qwen3:8b"}
    assert made.pools["qwen3"]["backends"] == [{"url": "http://localhost:11434", "host": "backend"}]
    assert made.pools["qwen3"]["ttft_timeout"] == 900
    assert made.pools["nomic"]["models"] == ["nomic"]
    assert made.pools["nomic"]["backends"] == [{"url": "http://embed:7997"}]
    assert made.values["log_format"] == "json"
    for lost in [
        "model_list[0].litellm_params.api_key: keys are not carried over",
        "model_list[0].litellm_params.rpm: there are no limits on the rate of requests",
        "model_list[6].litellm_params.model: LiteLLM translates requests for the provider 'azure'",
        "model_list[7].litellm_params.model: LiteLLM translates requests for the provider 'anthropic'",
        "model_list[8].litellm_params.api_base: TLS to backends (https://) is not supported",
        "model_list[9].litellm_params.api_base: http://gpu9:8000 has a path behind it that does not end with /v1",
        "model_list[10].litellm_params.api_base: the URL has a user in it",
        "router_settings.redis_host: the counts of a process are its own",
        "router_settings.redis_password:",
        "router_settings.fallbacks: no pool hands requests over to another",
        "router_settings.model_group_alias.opus: the model that it stands for is not carried over either",
        "router_settings.model_group_alias.gpt-3.5-turbo.hidden: GET /v1/models lists every name",
        "router_settings.routing_strategy: the backend with the fewest requests in flight",
        "litellm_settings.drop_params:",
        "litellm_settings.success_callback: metrics are at /metrics",
        "general_settings.master_key: keys are not carried over",
        "general_settings.database_url: there is no database",
    ]:
        assert f"not carried over: {lost}" in made.comments, lost


def test_i2_backends_of_a_model_name_that_know_it_by_different_names(make: Callable[..., Imported]) -> None:
    made = make(
        "litellm",
        """
model_list:
  - model_name: chat
    litellm_params: {model: openai/llama-awq, api_base: "http://gpu2:8000/v1", order: 2}
  - model_name: chat
    litellm_params: {model: openai/llama, api_base: "http://gpu1:8000/v1", order: 1}
  - model_name: "*"
    litellm_params: {model: "openai/*", api_base: "http://any:8000/v1"}
  - model_name: "llama-*"
    litellm_params: {model: "openai/meta-*", api_base: "http://any:8000/v1"}
  - model_name: weights
    litellm_params: {model: openai/weights, api_base: "http://gpu3:8000/v1", weight: 0.9}
  - model_name: weights
    litellm_params: {model: openai/weights, api_base: "http://gpu4:8000/v1", weight: 0.3}
  - model_name: weights
    litellm_params: {model: openai/weights, api_base: "http://gpu5:8000/v1", weight: 0}
""",
    )
    assert made.pools["chat"] == {"aliases": {"chat": "llama"}, "backends": [{"url": "http://gpu1:8000"}]}
    assert "not carried over: model_list[0] (http://gpu2:8000): it knows the model as 'llama-awq'" in made.comments
    assert made.pools["*"]["models"] == ["*"]
    assert "llama-*" not in made.pools
    assert [backend.get("weight", 1) for backend in made.pools["weights"]["backends"]] == [100, 33]
    assert made.counts == (3, 4, 3)


def test_i2_a_server_that_gets_two_hosts_is_two_backends(make: Callable[..., Imported]) -> None:
    made = make(
        "litellm",
        """
model_list:
  - {model_name: a, litellm_params: {model: ollama/a, api_base: "http://gpu:11434"}}
  - {model_name: b, litellm_params: {model: openai/b, api_base: "http://gpu:11434/v1"}}
  - {model_name: c, litellm_params: {model: ollama/c, api_base: "http://gpu:11434"}}
""",
    )
    assert made.counts == (3, 2, 0)
    assert [pool["backends"][0].get("name") for pool in made.pools.values()] == [None, "http://gpu:11434-2", None]


LLAMA_SWAP = """
healthCheckTimeout: 300
logLevel: warn
startPort: 9000
apiKeys: [sk-swap-client-key]
macros:
  server: >
    /opt/llama-server
    --host 127.0.0.1 --port ${PORT}
  models-dir: "${env.HOME}/models"
  ctx: 8192
  peer-key: peer-key-without-a-shape
models:
  qwen3-8b:
    cmd: |
      # a small one
      ${server}
      --model ${models-dir}/qwen3-8b.gguf --ctx-size ${ctx} --api-key sk-swap-client-key \\
      --hf-token
      hf_AbCdEfGhIjKlMnOp
    aliases: [gpt-4o-mini, {id: qwen, name: Qwen}]
    env: ["CUDA_VISIBLE_DEVICES=0,1", "HF_TOKEN=hf_AbCdEfGhIjKlMnOp", "OTHER=pw-of-db"]
    ttl: 300
    timeouts: {connect: 10, responseHeader: 0, idleConn: 90}
  gemma:
    macros: {ctx: 4096}
    cmd: ${server} --model gemma.gguf --ctx-size ${ctx} --key=${peer-key}
    proxy: http://127.0.0.1:${PORT}
    useModelName: google/gemma-3
    aliases: [vision]
    checkEndpoint: /v1/models
    unlisted: true
  vllm:
    cmd: docker run -p 8100:8000 -e HF_TOKEN=${env.HF_TOKEN} vllm/vllm-openai --model ${MODEL_ID}
    cmdStop: docker stop vllm
    proxy: http://127.0.0.1:8100
    checkEndpoint: none
groups:
  big: {swap: true, exclusive: true, members: [gemma, vllm]}
peers:
  other: {proxy: "http://192.168.1.23:8080", apiKey: "${peer-key}", models: [a, b, qwen]}
  openrouter: {proxy: "https://openrouter.ai/api", apiKey: cloud-key-9999, models: [z-ai/glm]}
"""


def test_i2_llama_swap(make: Callable[..., Imported]) -> None:
    made = make("llama-swap", LLAMA_SWAP)
    assert made.counts[:2] == (4, 4)
    assert made.values["log_level"] == "warning"
    # Ports go to models in the order of their names: gemma, then qwen3-8b; vllm has one of its own.
    assert made.pools["qwen3-8b"] == {
        "models": ["qwen3-8b", "gpt-4o-mini", "qwen"],
        "health": {"path": "/health"},
        "connect_timeout": 10,
        "ttft_timeout": 0,
        "backends": [{"url": "http://localhost:9001"}],
    }
    assert made.pools["gemma"] == {
        "aliases": {"gemma": "google/gemma-3", "vision": "google/gemma-3"},
        "health": {"path": "/v1/models"},
        "backends": [{"url": "http://127.0.0.1:9000"}],
    }
    assert made.pools["vllm"] == {"models": ["vllm"], "backends": [{"url": "http://127.0.0.1:8100"}]}
    assert made.pools["other"] == {"models": ["a", "b"], "backends": [{"url": "http://192.168.1.23:8080"}]}
    lines = [line.removeprefix("#     ") for line in made.text.splitlines() if line.startswith("#     ")]
    assert lines == [
        "CUDA_VISIBLE_DEVICES=0,1 HF_TOKEN=*** OTHER=*** \\",
        "/opt/llama-server --host 127.0.0.1 --port 9001 \\",
        "--model ${HOME}/models/qwen3-8b.gguf --ctx-size 8192 --api-key *** \\",
        "--hf-token \\",
        "***",
        "/opt/llama-server --host 127.0.0.1 --port 9000 \\",
        "--model gemma.gguf --ctx-size 4096 --key=***",
        "docker run -p 8100:8000 -e HF_TOKEN=*** vllm/vllm-openai --model vllm",
    ]
    for lost in [
        "healthCheckTimeout: requests for a server that still loads wait where its pool has queue",
        "apiKeys: keys are not carried over",
        "groups: llmpipe starts and stops no processes",
        "models.qwen3-8b.cmd: llmpipe starts no processes; start the server yourself, such as with",
        "models.qwen3-8b.ttl: llmpipe starts and stops no processes",
        "models.qwen3-8b.timeouts.idleConn:",
        "models.gemma.unlisted: GET /v1/models lists every name",
        "models.vllm.cmdStop: llmpipe starts and stops no processes",
        "peers.other.models: 'qwen' leads to the pool 'qwen3-8b' already",
        "peers.other.apiKey: keys are not carried over",
        "peers.openrouter.proxy: TLS to backends (https://) is not supported",
    ]:
        assert f"not carried over: {lost}" in made.comments, lost


def test_i2_llama_swap_without_a_port(make: Callable[..., Imported], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOX", "10.0.0.9")
    monkeypatch.delenv("NO_BOX", raising=False)
    made = make(
        "llama-swap",
        """
models:
  a: {cmd: "server --port 1", proxy: "http://127.0.0.1:${PORT}"}
  b: {cmd: "server --port ${PORT}"}
  c: {cmd: "ssh box server", proxy: "http://${env.BOX}:8000"}
  d: {cmd: "ssh box server", proxy: "http://${env.NO_BOX}:8000"}
  e: {cmd: "server", proxy: "http://${lost}:8000"}
""",
    )
    assert {name: pool["backends"][0]["url"] for name, pool in made.pools.items()} == {
        "b": "http://localhost:5800",
        "c": "http://10.0.0.9:8000",
    }
    assert "models.a.proxy: it has ${PORT}, which is a number only where the cmd uses it too" in made.comments
    assert "models.d.proxy: the variable NO_BOX is not set here" in made.comments
    assert "models.e.proxy: there is no macro lost" in made.comments


NGINX = """
user nginx;
worker_processes auto;
events { worker_connections 1024; }
http {
    include conf.d/*.upstreams;
    map $http_upgrade $connection_upgrade { default upgrade; '' close; }
    log_format main '$remote_addr "$request"';
    keepalive_timeout 65;
    set_real_ip_from 10.0.0.0/8;
    real_ip_header X-Forwarded-For;
    large_client_header_buffers 4 16k;
    server {
        listen 80 default_server;
        listen [::]:8081;
        listen 443 ssl;
        ssl_certificate /etc/ssl/llm.pem;
        ssl_certificate_key /etc/ssl/llm.key;
        server_name llm.example.com;
        client_max_body_size 50m;
        proxy_connect_timeout 5s;
        if ($arg_key = "arg-key-of-nginx") { return 403; }
        location / {
            proxy_pass http://vllm;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header Authorization "Basic c2VjcmV0LW9mLW5naW54";
            proxy_read_timeout "1h 30m";
            proxy_buffering off;
            proxy_next_upstream error timeout http_503 http_429 non_idempotent;
        }
        location /v1/audio/ { proxy_pass http://whisper/v1/audio/; proxy_read_timeout 600; }
        location /v1/audio/speech { proxy_pass http://speech:8001; client_max_body_size 1m; proxy_set_header Host tts; }
        location = /metrics { deny all; }
        location ~ ^/v1/embeddings { proxy_pass http://127.0.0.1:7997; }
        location ~* \\.(png|jpg)$ { proxy_pass http://vllm; }
        location /ollama/ { proxy_pass http://ollama/; }
        location /cloud/ { proxy_pass https://api.example.com; }
        location @named { proxy_pass http://vllm; }
        location /$x { proxy_pass http://$backend; }
    }
}
"""
UPSTREAMS = """
upstream vllm {
    least_conn;
    zone vllm 64k;
    server 10.0.0.11:8000 weight=2 max_fails=3 fail_timeout=30s;
    server gpu2 max_conns=64;
    server 10.0.0.13:8000 backup;
    server 10.0.0.14:8000 down;
    keepalive 32;
    keepalive_timeout 3s;
}
upstream whisper { server unix:/run/whisper.sock; ip_hash; }
upstream ollama { server 127.0.0.1:11434; }
"""


def test_i2_nginx(make: Callable[..., Imported], tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "llm.upstreams").write_text(UPSTREAMS)
    made = make("nginx", NGINX)
    assert made.counts[:2] == (4, 6)
    assert made.values["listen"] == ["0.0.0.0:80", "[::]:8081"]
    assert made.values["keepalive_timeout"] == "65s"
    assert made.values["trusted_proxies"] == ["10.0.0.0/8"]
    assert (made.values["max_request_line"], made.values["max_head"]) == ("16KB", "64KB")
    assert made.pools == {
        "vllm": {
            "connect_timeout": "5s",
            "idle_timeout": "90m",
            "max_body": "50MB",
            "retry": {"statuses": [429, 503]},
            "ttft_timeout": "90m",
            "upstream_idle_timeout": "3s",
            "backends": [
                {"url": "http://10.0.0.11:8000", "weight": 2},
                {"url": "http://gpu2:80", "max_in_flight": 64},
                {"url": "http://10.0.0.13:8000", "tier": 1},
            ],
        },
        "whisper": {
            "connect_timeout": "5s",
            "idle_timeout": "600s",
            "max_body": "50MB",
            "ttft_timeout": "600s",
            "backends": [{"url": "unix:/run/whisper.sock", "host": "whisper"}],
        },
        "speech:8001": {
            "connect_timeout": "5s",
            "max_body": "1MB",
            "backends": [{"url": "http://speech:8001", "host": "tts"}],
        },
        "127.0.0.1:7997": {
            "connect_timeout": "5s",
            "max_body": "50MB",
            "backends": [{"url": "http://127.0.0.1:7997", "host": "backend"}],
        },
    }
    # As nginx chooses: an expression, then the longest beginning.
    assert made.values["routes"] == [
        {"path": "/v1/embeddings", "pool": "127.0.0.1:7997"},
        {"path": "/v1/audio/speech", "pool": "speech:8001"},
        {"path": "/v1/audio/", "pool": "whisper"},
        {"path": "/", "pool": "vllm"},
    ]
    for lost in [
        "map (config:7): there are no variables",
        "listen (config:16): TLS from clients is not supported",
        "if (config:22): write [[routes]] with a path and a header",
        "proxy_set_header authorization (config:29): fields go on as clients send them",
        "proxy_next_upstream non_idempotent (config:32): a request is sent again only while no byte",
        "deny (config:36): llmpipe keeps nobody out",
        "location = /metrics (config:36): it leads to no backend; its requests go where the other routes lead now",
        "location ~* \\.(png|jpg)$ (config:38): a route has the beginning of a path, not a regular expression or a name",
        "proxy_pass (config:39): a path goes on as it came",
        "proxy_pass (config:40): TLS to backends (https://) is not supported",
        "location @named (config:41): a route has the beginning of a path",
        "proxy_pass (config:42): there are no variables; name the server",
        "max_fails of server (llm.upstreams:5):",
        "fail_timeout of server (llm.upstreams:5):",
        "server (llm.upstreams:8): it is down there",
        "ip_hash (llm.upstreams:12): the backend with the fewest requests in flight",
        "upstream (llm.upstreams:13): no location leads to the upstream 'ollama'",
    ]:
        assert f"not carried over: {lost}" in made.comments, lost


LIMITS: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "nginx, a limit and a queue": (
        "nginx",
        "upstream llm { server a:1 max_conns=8 slow_start=30s; server b:2 max_conns=4 slow_start=30s backup; queue 100 timeout=70s; }",
        {
            "slow_start": "30s",
            "queue": {"size": 100, "timeout": "70s"},
            "backends": [
                {"url": "http://a:1", "max_in_flight": 8},
                {"url": "http://b:2", "max_in_flight": 4, "tier": 1},
            ],
        },
        [],
    ),
    "nginx, a queue's own time": (
        "nginx",
        "upstream llm { queue 5; server a:1 max_conns=0 slow_start=0; }",
        {"queue": {"size": 5, "timeout": "60s"}, "backends": [{"url": "http://a:1"}]},
        ["slow_start of server (config:1)"],
    ),
    "nginx, what cannot be": (
        "nginx",
        "upstream llm { server a:1 slow_start=30s max_conns=2000000; server b:2 max_conns=x; queue 5 timeout=x; }",
        {"backends": [{"url": "http://a:1"}, {"url": "http://b:2"}]},
        [
            "slow_start of server (config:1): it is one time for all backends of a pool: write slow_start into the pool",
            "server (config:1): max_in_flight is at most 1000000, and 2000000 is no limit here",
            "max_conns of server (config:1): it is no number",
            "queue (config:1): it is no number and time",
        ],
    ),
    "nginx, a slow start that is too long": (
        "nginx",
        "upstream llm { server a:1 slow_start=2h; }",
        {"backends": [{"url": "http://a:1"}]},
        ["slow_start of upstream (config:1)", "slow_start of server (config:1)"],
    ),
    "LiteLLM": (
        "litellm",
        """
model_list:
  - {model_name: llm, litellm_params: {model: openai/llm, api_base: "http://a:1", max_parallel_requests: 16}}
  - {model_name: llm, litellm_params: {model: openai/llm, api_base: "http://b:2"}}
router_settings: {default_max_parallel_requests: 5}
general_settings: {max_parallel_requests: 4, global_max_parallel_requests: 40}
""",
        {"models": ["llm"], "backends": [{"url": "http://a:1", "max_in_flight": 16}, {"url": "http://b:2"}]},
        [
            "router_settings.default_max_parallel_requests: write max_in_flight into the backends",
            "general_settings.max_parallel_requests: write max_in_flight into the pools or their backends",
            "general_settings.global_max_parallel_requests: no limit is one for all pools together",
        ],
    ),
    "llama-swap": (
        "llama-swap",
        """
healthCheckTimeout: 300
globalConcurrencyLimit: 8
models:
  llm: {proxy: "http://a:1", checkEndpoint: none, concurrencyLimit: 3}
""",
        {"models": ["llm"], "max_in_flight": 3, "queue": {"size": 0}, "backends": [{"url": "http://a:1"}]},
        [
            "healthCheckTimeout: requests for a server that still loads wait where its pool has queue = { cold_timeout",
            "globalConcurrencyLimit: no limit is one for all pools together",
        ],
    ),
    "llama-swap, its own default": (
        "llama-swap",
        'models: {llm: {proxy: "http://a:1", checkEndpoint: none, concurrencyLimit: 0}}',
        {"models": ["llm"], "backends": [{"url": "http://a:1"}]},
        [],
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_i2_limits_on_requests_at_a_time(make: Callable[..., Imported], name: str) -> None:
    kind, text, pool, lost = LIMITS[name]
    made = make(kind, text)
    assert made.pools == {"llm": pool}
    for words in lost:
        assert f"not carried over: {words}" in made.comments, words
    assert made.counts[2] == len(lost)


def test_i2_a_server_with_two_limits_is_two_backends(make: Callable[..., Imported]) -> None:
    """As in nginx, where each upstream counts for itself."""
    made = make(
        "nginx",
        """
upstream fast { server a:1 max_conns=8; }
upstream slow { server a:1 max_conns=2; }
server {
    location / { proxy_pass http://fast; proxy_set_header Host $host; }
    location /slow/ { proxy_pass http://slow; proxy_set_header Host $host; }
}
""",
    )
    assert [pool["backends"] for pool in made.pools.values()] == [
        [{"url": "http://a:1", "max_in_flight": 8}],
        [{"url": "http://a:1", "name": "http://a:1-2", "max_in_flight": 2}],
    ]


def test_i2_an_upstream_alone_is_one_pool_that_gets_everything(make: Callable[..., Imported]) -> None:
    made = make("nginx", "upstream vllm { server a:1; server b:2 weight=3; }")
    assert made.values == {"pools": {"vllm": {"backends": [{"url": "http://a:1"}, {"url": "http://b:2", "weight": 3}]}}}
    made = make("nginx", "server { listen 127.0.0.1:81; location / { proxy_pass http://127.0.0.1:8000/; } }")
    assert made.values == {
        "listen": ["127.0.0.1:81"],
        "pools": {"127.0.0.1:8000": {"backends": [{"url": "http://127.0.0.1:8000", "host": "backend"}]}},
    }
    assert made.counts == (1, 1, 0)


def test_i2_servers_of_nginx_are_told_apart_by_their_names(make: Callable[..., Imported]) -> None:
    made = make(
        "nginx",
        """
server { listen 80; return 301 https://$host$request_uri; }
server { listen 80; server_name _; location / { proxy_pass http://a:1; } }
server { listen 8080; server_name b.example.com *.b.example.com; location / { proxy_pass http://b:1; } }
server { listen 8081; location / { proxy_pass http://c:1; } }
""",
    )
    assert made.values["routes"] == [
        {"path": "/", "header": "Host: b.example.com:8080", "pool": "b:1"},
        {"path": "/", "pool": "a:1"},
    ]
    assert made.values["listen"] == ["0.0.0.0:80", "0.0.0.0:8080"]
    assert list(made.pools) == ["a:1", "b:1"]
    for lost in [
        "return (config:2): llmpipe answers nothing itself",
        "server (config:2): none of its locations leads to a backend",
        "server_name (config:4): a route has a whole name",
        "server (config:5): it has no server_name of its own",
    ]:
        assert f"not carried over: {lost}" in made.comments, lost


def test_i2_fields_that_nginx_sets_for_all_locations(make: Callable[..., Imported]) -> None:
    made = make(
        "nginx",
        """
http {
  proxy_set_header Host $http_host;
  proxy_set_header X-Real-IP $remote_addr;
  proxy_read_timeout 2m;
  server {
    location /a { proxy_pass http://a:1; }
    location /b { proxy_pass http://b:1; proxy_set_header Host $arg_host; }
    location /c { proxy_pass http://c:1; proxy_read_timeout 3m; proxy_ignore_client_abort on; }
    location /d { proxy_pass http://c:1; proxy_ignore_client_abort off; }
  }
}
""",
    )
    assert [pool["backends"] for pool in made.pools.values()] == [
        [{"url": "http://a:1"}],
        [{"url": "http://b:1", "host": "backend"}],
        [{"url": "http://c:1", "on_abort": "finish"}],
        [{"url": "http://c:1", "name": "http://c:1-2"}],
    ]
    assert [pool["idle_timeout"] for pool in made.pools.values()] == ["120s", "120s", "180s", "120s"]
    assert "not carried over: proxy_set_header x-real-ip (config:4): fields go on as clients send them" in made.comments
    assert "not carried over: proxy_set_header host (config:8): host is the client's" in made.comments
    assert made.counts == (4, 4, 2)


def test_i2_an_exact_location_of_nginx(make: Callable[..., Imported]) -> None:
    """It is the beginning of a path here, so that one which would take other requests is left out."""
    made = make(
        "nginx",
        """
server {
  location / { proxy_pass http://a:1; }
  location = /v1/models { proxy_pass http://b:1; }
  location = /v1 { proxy_pass http://b:1; }
  location /v1/ { proxy_pass http://a:1; }
}
""",
    )
    assert [(route["path"], route["pool"]) for route in made.values["routes"]] == [
        ("/v1/models", "b:1"),
        ("/v1/", "a:1"),
        ("/", "a:1"),
    ]
    assert "location = /v1/models (config:4): an exact path there, the beginning of one here." in made.comments
    assert (
        "not carried over: location = /v1 (config:5): as the beginning of a path it would take requests"
        in made.comments
    )


# End to end.


def serve(kind: str, path: Path, tmp_path: Path) -> Proxy:
    """A proxy with what the command makes of a file."""
    output = tmp_path / "llmpipe.toml"
    done = llmpipe("import", kind, str(path), "--output", str(output))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "not carried over" in done.stderr
    return Proxy(options=["--config", str(output)])


def ask(proxy: Proxy, model: str, path: str = "/v1/chat/completions") -> dict[str, Any]:
    """The answer of a mock."""
    body = json.dumps({"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with Client(proxy) as client:
        client.sock.settimeout(60)
        response = client.request(head.encode() + body)
    assert response.status == 200, response.body
    answer: dict[str, Any] = json.loads(response.body)
    return answer


FAST = ("--ttft", "0", "--tokens-per-second", "0")


def test_i2_litellm_is_served(tmp_path: Path) -> None:
    # A mock with two models answers 404 to any other name, so that an alias that stayed as it was would be seen.
    with (
        Mock(*FAST, "--model", "org/llama", "--model", "x") as llama,
        Mock(*FAST, "--model", "qwen", "--model", "y") as qwen,
    ):
        path = tmp_path / "config.yaml"
        path.write_text(f"""
model_list:
  - {{model_name: chat, litellm_params: {{model: hosted_vllm/org/llama, api_base: "{llama.url}/v1", api_key: none}}}}
  - {{model_name: qwen, litellm_params: {{model: openai/qwen, api_base: "{qwen.url}/v1"}}}}
router_settings: {{model_group_alias: {{gpt-4o: chat}}}}
""")
        with serve("litellm", path, tmp_path) as proxy:
            assert [ask(proxy, name)["model"] for name in ("chat", "gpt-4o", "qwen")] == [
                "org/llama",
                "org/llama",
                "qwen",
            ]


def test_i2_llama_swap_is_served(tmp_path: Path) -> None:
    with Mock(*FAST, "--model", "org/gemma", "--model", "x") as gemma, Mock(*FAST, "--model", "small") as small:
        path = tmp_path / "config.yaml"
        path.write_text(f"""
startPort: {small.address.rpartition(":")[2]}
models:
  gemma: {{cmd: serve gemma, proxy: "{gemma.url}", useModelName: org/gemma, aliases: [vision]}}
  small: {{cmd: "serve small --port ${{PORT}}", proxy: "http://127.0.0.1:${{PORT}}", aliases: [gpt-4o-mini]}}
""")
        with serve("llama-swap", path, tmp_path) as proxy:
            assert [ask(proxy, name)["model"] for name in ("gemma", "vision")] == ["org/gemma", "org/gemma"]
            # Without useModelName the name that the client says goes on as it is.
            assert [ask(proxy, name)["model"] for name in ("small", "gpt-4o-mini")] == ["small", "gpt-4o-mini"]


def test_i2_nginx_is_served(tmp_path: Path) -> None:
    hosts: list[bytes] = []

    def audio(connection: Connection) -> None:
        while True:
            hosts.extend(connection.read_request().values(b"host"))
            respond(connection, b'{"model": "whisper"}')

    with Mock(*FAST, "--model", "chat", "--model", "x") as chat, Backend(audio) as speech:
        path = tmp_path / "nginx.conf"
        path.write_text(f"""
events {{}}
http {{
  upstream chat {{ server {chat.address}; ip_hash; }}
  server {{
    listen 127.0.0.1:80;
    location / {{ proxy_pass http://chat; }}
    location /v1/audio/ {{ proxy_pass {speech.url}; proxy_set_header Host speech.internal; }}
  }}
}}
""")
        with serve("nginx", path, tmp_path) as proxy:
            assert ask(proxy, "chat")["model"] == "chat"
            assert ask(proxy, "chat", "/v1/audio/transcriptions")["model"] == "whisper"
    assert hosts == [b"speech.internal"]


# The command.


def test_i2_the_command_prints_a_file_and_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("""
model_list:
  - {model_name: chät, litellm_params: {model: openai/a, api_base: "http://name.that.nobody.has.invalid:1"}}
  - {model_name: b, litellm_params: {model: openai/b, api_base: "http://b:1", rpm: 5}}
""")
    for locale in ("C.UTF-8", "C", "en_US.ISO-8859-1"):
        done = llmpipe("import", "litellm", str(path), env={"LC_ALL": locale, "PYTHONUTF8": "0"})
        assert done.returncode == 0
        assert done.stderr == "2 pools, 2 backends; 1 thing was not carried over\n"
        assert list(tomllib.loads(done.stdout)["pools"]) == ["chät", "b"]


def test_i2_an_existing_file_is_kept(tmp_path: Path) -> None:
    path, output = tmp_path / "nginx.conf", tmp_path / "llmpipe.toml"
    path.write_text("upstream a { server b:1; }")
    output.write_text("mine")
    words = ("import", "nginx", str(path), "--output", str(output))
    done = llmpipe(*words)
    assert (done.returncode, output.read_text()) == (2, "mine")
    assert done.stderr == f"Error: {output}: it exists; write to another file, or over it with --force\n"
    assert llmpipe(*words, "--force").returncode == 0
    assert config_file.read(str(output)).pools[0].name == "a"
    done = llmpipe("import", "nginx", str(path), "--output", str(tmp_path / "no" / "folder"))
    assert (done.returncode, done.stderr) == (2, f"Error: {tmp_path}/no/folder: No such file or directory\n")


def test_the_kinds_are_completed() -> None:
    asked = {"_LLMPIPE_COMPLETE": "bash_complete", "COMP_WORDS": "llmpipe import ", "COMP_CWORD": "2"}
    assert llmpipe(env=asked).stdout == "plain,litellm\nplain,llama-swap\nplain,nginx\n"
    assert "is not one of 'litellm', 'llama-swap', 'nginx'" in llmpipe("import", "envoy", "x").stderr


@pytest.mark.parametrize("kind", command.KINDS)
def test_libraries_are_wanted_only_when_it_runs(kind: str, tmp_path: Path) -> None:
    script = "import sys, llmpipe.cli; print({'yaml', 'crossplane'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    (tmp_path / "file").write_text("")
    script = (
        "import sys; sys.modules['yaml'] = sys.modules['crossplane'] = None\n"
        f"sys.argv = ['llmpipe', 'import', {kind!r}, {str(tmp_path / 'file')!r}]\n"
        "from llmpipe.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: llmpipe import needs libraries that are not installed; install them with: pip install 'llmpipe[import]'\n"
    )


# Files that nobody vouches for.


def laughs(start: str, next_one: str) -> str:
    return f"a0: &a0 {start}\n" + "".join(f"a{n}: &a{n} {next_one.replace('@', f'*a{n - 1}')}\n" for n in range(1, 60))


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        ("litellm", b"", "nothing in it gives a backend"),
        ("litellm", b"model_list: []", "nothing in it gives a backend"),
        ("litellm", b"just words", "a map is expected here, not text"),
        ("litellm", b"- a\n- b", "a map is expected here, not a list"),
        ("litellm", b"model_list: {a: 1}", "model_list: a list is expected here, not a map"),
        ("litellm", b"model_list: [1]", "model_list[0]: a map is expected here, not a number"),
        ("litellm", b"model_list: [{model_name: 4}]", "model_list[0].model_name: text (in quotes) is expected here"),
        ("litellm", b"model_list: [{model_name: a}]", "litellm_params.model: there is none"),
        (
            "litellm",
            b"model_list: [{model_name: a, litellm_params: {model: openai/a, api_base: 'http://a:1', order: .inf}}]",
            "order: it is too large a number",
        ),
        ("litellm", b"router_settings: {timeout: [sk-backend-5678]}", "router_settings.timeout: a number is expected"),
        ("litellm", b"router_settings: sk-backend-5678", "router_settings: a map is expected here, not text"),
        ("litellm", b"1: 2", "text as a key (in quotes) is expected here, not a number"),
        ("litellm", b"a: 1\na: 2", "config:2: a key is twice in the same map"),
        ("litellm", b"a: [1", "config:1: it is not YAML: expected ',' or ']'"),
        ("litellm", b"a: 'sk-backend-5678\nb: \"", "it is not YAML"),
        (
            "litellm",
            b"a: !!python/object/apply:os.system [id]",
            "config:1: it is not YAML: could not determine a construct",
        ),
        ("litellm", b"a: !!timestamp x", "it is not YAML (AttributeError)"),
        ("litellm", b"a: &a [*a]", "it has more than 100000 values"),
        ("litellm", laughs("[x]", "[@, @]").encode(), "it has more than 100000 values"),
        ("litellm", laughs("{x: 1}", "{<<: [@, @]}").encode(), "it has more than 100000 values"),
        ("litellm", b"[" * 100_000, "it is nested too deep"),
        ("litellm", b"a: \0", "there is a NUL byte in it"),
        ("litellm", b"a: \xff", "it is not UTF-8 (byte 4)"),
        ("litellm", b"x" * (10 << 20), f"it is longer than {MOST_BYTES >> 10} KB"),
        ("llama-swap", b"models: [a]", "models: a map is expected here, not a list"),
        ("llama-swap", b"models: {a: x}", "models.a: a map is expected here, not text"),
        ("llama-swap", b"models: {a: {cmd: [x]}}", "models.a.cmd: text (in quotes) is expected here, not a list"),
        ("llama-swap", b"models: {a: {cmd: x, proxy: 'http://sk-backend-5678@x'}}", "the URL has a user in it"),
        (
            "llama-swap",
            b"models: {a: {aliases: [{name: x}]}}",
            "models.a.aliases[0]: a name is expected here, not nothing",
        ),
        ("llama-swap", b"macros: {a: [1], b: ~}", "macros.b: text or a number is expected here, not nothing"),
        ("llama-swap", b"startPort: 5.5", "startPort: a whole number is expected here"),
        (
            "llama-swap",
            (
                "macros:\n  m0: xxxxxxxxxx\n" + "".join(f"  m{n}: '${{m{n - 1}}}${{m{n - 1}}}'\n" for n in range(1, 60))
            ).encode()
            + b"models: {a: {cmd: '${m59}'}}",
            "models.a.cmd: with its macros it is longer than 64 KB",
        ),
        ("llama-swap", b"", "nothing in it gives a backend"),
        ("nginx", b"", "nothing in it gives a backend"),
        ("nginx", b"just words", "nothing in it gives a backend"),
        (
            "nginx",
            b"upstream a { server b:1;",
            'config:1: it is no nginx configuration: unexpected end of file, expecting "}"',
        ),
        ("nginx", b"}", 'config:1: it is no nginx configuration: unexpected "}"'),
        ("nginx", b"a {" * 50_000, "it is no nginx configuration"),
        ("nginx", b"include config;", "includes have no end"),
        ("nginx", b"upstream a { server b:1 weight=0; }", "weight is from 1 to 1000, not 0"),
        ("nginx", b"upstream a { server u:pass-word-1@b:1; }", "its address is no HOST:PORT"),
        ("nginx", b"server { location / { proxy_pass http://u:pass-word-1@b:1; } }", "the URL has a user in it"),
        ("nginx", b"\0", "there is a NUL byte in it"),
        ("nginx", b"\xff", "it is not UTF-8 (byte 1)"),
        ("nginx", b"#" * (10 << 20), f"it is longer than {MOST_BYTES >> 10} KB"),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else None,
)
def test_i2_what_cannot_be_imported_is_one_line(
    kind: str, data: bytes, says: str, make: Callable[..., Imported], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as refused:
        make(kind, data)
    text = str(refused.value)
    assert says in text
    assert "config" in text
    assert "\n" not in text
    assert not [secret for secret in SECRETS if secret in text]
    assert capfd.readouterr() == ("", "")


def test_i2_a_fault_is_printed_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a: \xff")
    for words in (("litellm", str(tmp_path / "file")), ("nginx", str(tmp_path)), ("llama-swap", str(tmp_path / "no"))):
        done = llmpipe("import", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"Error: {words[1]}: ")
        assert done.stderr.count("\n") == 1


def test_i2_included_files_have_a_bound(make: Callable[..., Imported], tmp_path: Path) -> None:
    (tmp_path / "one").write_text("upstream a { server b:1; }")
    made = make("nginx", "include one; include lost.conf; include /dev/zero; include /*/*/*/*; include mime.types;")
    assert made.values["pools"] == {"a": {"backends": [{"url": "http://b:1"}]}}
    assert made.comments.count("there is no such file; import again where it is") == 3
    with pytest.raises(UsageError, match="more than 100 files"):
        make("nginx", "include one;" * 101)
    (tmp_path / "long").write_text("#" * (MOST_BYTES - 20))
    with pytest.raises(UsageError, match="with what it includes it is longer than"):
        make("nginx", "include long; include long;")


def test_i2_many_of_a_kind(make: Callable[..., Imported]) -> None:
    """As many as one file can have are carried over, and the others are comments."""
    row = '- {{model_name: m{0}, litellm_params: {{model: openai/m{0}, api_base: "http://h{0}:1"}}}}\n'
    servers = '- {{model_name: m{0}, litellm_params: {{model: openai/m{0}, api_base: "http://h{1}:1"}}}}\n'
    rows = [
        servers.format(n // 130, n) for n in range(130 * 33)
    ]  # two of each pool are too many, and the last pool's rest
    made = make("litellm", "model_list:\n" + "".join(rows))
    assert made.counts == (32, 4096, 33 * 130 - 4096)
    assert "one proxy can have 4096 backends" in made.comments
    assert "one pool can have 128 backends" in made.comments
    aliases = "".join(f"  a{n}: m0\n" for n in range(1100))
    made = make("litellm", f"model_list:\n{row.format(0)}router_settings:\n model_group_alias:\n{aliases}")
    assert len(made.pools["m0"]["aliases"]) == 999
    assert made.counts == (1, 1, 101)
    rows = "".join(f"  m{n}: {{cmd: x, proxy: 'http://h:1'}}\n" for n in range(1001))
    with pytest.raises(UsageError, match="more than 1000 models"):
        make("llama-swap", f"models:\n{rows}")


# What is written.

NASTY = [
    '"',
    "\\",
    "\n",
    "\r\n",
    "\t",
    "\b",
    "\f",
    "\x00",
    "\x1b",
    "\x7f",
    "\x85",
    "\u2028",
    "\u202e",
    "é",
    "😀",
    "'",
    "'''",
    '"""',
]
NASTY += ["#", "=", "[", "]", "{", "}", ".", " ", "a", "\\u0041", "\\U00000041", "\ufeff", "*", "${x}"]


def test_every_text_is_written_so_that_toml_reads_the_same() -> None:
    made = random.Random(1)
    for _ in range(3000):
        text = "".join(made.choices(NASTY, k=made.randrange(8)))
        assert tomllib.loads(f"{toml_key(text)} = {toml_text(text)}") == {text: text}, text


def test_no_text_leaves_its_comment() -> None:
    made = random.Random(2)
    for _ in range(1000):
        draft = Draft("".join(made.choices(NASTY, k=8)))
        draft.top.lost("".join([*made.choices(NASTY, k=8), "\ud800"]), "why")
        draft.top.quote(["".join(made.choices(NASTY, k=8))])
        assert tomllib.loads(draft.render().encode().decode()) == {}


def test_names_that_no_model_can_have_become_comments(make: Callable[..., Imported]) -> None:
    made = make(
        "litellm",
        r"""
model_list:
  - {model_name: "a\"b", litellm_params: {model: openai/x, api_base: "http://a:1"}}
  - {model_name: "a\nb = 1", litellm_params: {model: openai/x, api_base: "http://a:1"}}
  - {model_name: "a\ud800b", litellm_params: {model: openai/x, api_base: "http://a:1"}}
  - {model_name: "good [x].y", litellm_params: {model: "openai/x\\y", api_base: "http://a:1"}}
  - {model_name: "good [x].z", litellm_params: {model: "openai/z", api_base: "http://a:1"}}
""",
    )
    assert made.values == {
        "pools": {"good [x].z": {"aliases": {"good [x].z": "z"}, "backends": [{"url": "http://a:1"}]}}
    }
    assert made.comments.count("is no name of a model") == 4


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("vllm serve --api-key abc --max-num-seqs 4", "vllm serve --api-key *** --max-num-seqs 4"),
        ("x --api-key='a b' --tokenizer y", "x --api-key=*** --tokenizer y"),
        ("x -hft abc --max-tokens 5", "x -hft *** --max-tokens 5"),
        ("docker run -e HF_TOKEN=abc -e N=1", "docker run -e HF_TOKEN=*** -e N=1"),
        ("docker run --env=DB_PASSWORD=abc x", "docker run --env=DB_PASSWORD=*** x"),
        ("curl http://u:p@host/ http://host/?k=v&n=1", "curl http://***@host/ http://host/?k=***&n=***"),
        ("curl -H 'Authorization: Bearer abc' x", "curl -H 'Authorization: ***' x"),
        ('x --config \'{"api_key": "abc", "n": 1}\'', 'x --config \'{"api_key": ***, "n": 1}\''),
        ("it is sk-abcdefgh12 or hf_abcdefghij", "it is *** or ***"),
        ("KEY=$KEY server --masterKey abc", "KEY=*** server --masterKey ***"),
        ("well-known", "***-known"),
    ],
)
def test_secrets_are_masked(text: str, masked: str) -> None:
    assert credentials.mask(text, {"well"}) == masked


def test_secrets_of_a_document_are_found() -> None:
    document = {"apiKeys": ["long-one", "none", 12345678], "macros": {"hf-token": "another", "max_tokens": "not-one"}}
    assert credentials.find(document) == {"long-one", "12345678", "another"}
