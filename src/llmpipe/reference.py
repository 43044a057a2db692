"""The page docs/configuration.md, which is made of the descriptions of the settings:

llmpipe config reference > docs/configuration.md
"""

import re

from msgspec import Struct

from llmpipe.config import PoolSettings, ProcessSettings
from llmpipe.settings import UNITS, Setting, describe

SCOPES: dict[str, type[Struct]] = {"The pool of backends": PoolSettings, "The process": ProcessSettings}

HEAD = f"""# Configuration

<!-- `llmpipe config reference` makes this page of the descriptions in src/llmpipe/config.py. Change them, not this. -->

Each setting of `llmpipe serve` is a flag, an environment variable and a key of the file that `--config` or `LLMPIPE_CONFIG` names. A flag
counts more than a variable, and a variable more than the file. White space at the ends of a variable is cut, and an empty one counts as none.

{UNITS}

A list is a flag that is repeated; in its variable spaces stand between the members. A switch is a flag without a value; its variable says
`true` or `false`. A secret stands in a file that the flag names, in the variable, or where the file says: `{{ env = "NAME" }}` or
`{{ file = "PATH" }}`. What cannot work is refused in one line, with exit code 2.

`--demo` (`LLMPIPE_DEMO`) runs a mock inference server instead of backends.

## The file

```
llmpipe serve --config llmpipe.toml
llmpipe check llmpipe.toml          # checks it, resolves the names, prints what it comes to
llmpipe config schema               # JSON Schema, for editors
```

```toml
listen = ["0.0.0.0:8080"]
head_timeout = "5s"
default_pool = "llama"

[pools.llama]
models = ["llama-3.3-70b", "llama-*"]
aliases = {{ "gpt-4o" = "llama-3.3-70b" }}
ttft_timeout = "2m"

[[pools.llama.backends]]
url = "http://gpu1:8000"

[[pools.llama.backends]]
url = "http://gpu2:8000"
weight = 2

[pools.whisper]
[[pools.whisper.backends]]
url = "http://gpu3:8000"

[[routes]]
path = "/v1/audio/"
pool = "whisper"
```

It is TOML. At its top stand the settings of the process, in the table of a pool those of a pool, each under the key that the tables below
say; `health.path` is `path` in the table `health`: `health = {{ path = "/health" }}`. A duration or size is text (`"30s"`, `"64MB"`) or a number of seconds or bytes; a list is an array; a switch is `true` or `false`.
[Examples](examples/README.md) for common set-ups.

| key of a pool | what it is |
|---|---|
| `models` | the names that requests say. A `*` at the end of one stands for anything |
| `aliases` | further names, each with the model that the backends get in its place |
| `[[pools.NAME.backends]]` | one or more tables, with the keys below |

| key of a backend | default | what it is |
|---|---|---|
| `url` | | `http://HOST:PORT`, `http://[V6]:PORT` or `unix:/PATH` |
| `name` | its URL | what logs and metrics call it. Under its name it keeps its counters over reloads. The same backend may be in several pools |
| `host` | `client` | what it gets in the Host field: `client` for what the client sent, `backend` for its own name, or another name |
| `on_abort` | `close` | `finish` lets it finish an answer whose client has left; a table closes the connection and makes a call, see [below](#clients-that-leave) |
| `max_in_flight` | 0 | exchanges that it works on at a time at most, of all pools; 0 is no limit |
| `addresses` | `all` | what several addresses of its name are: with `all` a server each, called `NAME@ADDRESS`, each with the `max_in_flight`, `weight` and `tier` of the backend; with `first` one server, of which the first address that answers is used. An IPv4 and an IPv6 address are one server, and so is `localhost` |
| `weight` | 1 | 1 to 1000: how many requests it gets beside the others |
| `tier` | 0 | it is asked only while no backend of a lower tier is usable |

| key | what it is |
|---|---|
| `[[routes]]` | `path` (the beginning of the target), `header` (a field's name, or `name: value`), or both, and the `pool` that such requests go to, whatever their model is. The first that fits counts |
| `default_pool` | the pool of requests that nothing else leads anywhere |

A request goes to the pool of the first route that fits; else to the pool that has its model: by the whole name, then by an alias, then by
the longest name with a `*` that fits; else to the default pool. Without one the answer is 404, or 400 for JSON that names no model. Where
there is one pool without models and routes, it gets every request, and bodies are not looked at.

`GET /v1/models` lists the names and aliases of the file. Behind a `*`, and in the default pool and pools without names, it lists what the
backends list themselves, of which they are asked every 30 s, without credentials; what one listed stays while it is down. If no pool has
names, a backend answers.

SIGHUP loads the file again, and so do `POST /reload` to the admin endpoint and, with `watch = true`, a change of it. Either the whole file is taken or, if there is a fault in it,
nothing; a line in the log says what is wrong. Pools, backends and routes change at once. Settings of the process change at the next start.

Names are resolved at the start, at each reload and every 30 s. The servers of a backend come and go with the addresses of its name, and
no stream is cut. A name that cannot be resolved is a warning: its backend is `unresolved` until it can. `llmpipe check` takes it for a fault.

## Clients that leave

When a client leaves, the connection to its backend is closed, and most servers then stop generating. A server that does not can be told by
a call:

```toml
[[pools.llama.backends]]
url = "http://gpu1:30000"
on_abort = {{ call = "http://gpu1:30000/abort_request" }}
```

`call` is a URL, or a path at the backend itself (`"/abort_request"`). What is posted is `{{"rid": "<the X-Request-ID>"}}`; `field = "id"` in
the table gives it another key. The server must know the request by the X-Request-ID that it got. That is the client's where it sent one:
whoever knows the id of another's request can have it stopped. `llmpipe_abort_calls_total` counts the calls by backend and result.

A Python package that is installed beside llmpipe can be told too. It names a callable in its `pyproject.toml`:

```toml
[project.entry-points."llmpipe.hooks"]
billing = "my_package:client_left"
```

```python
from llmpipe.disconnect import Abort


def client_left(abort: Abort) -> None:
    print(abort.client, abort.phase, abort.backend, abort.close_ms, abort.request_id)
```

It is called for each client that left before it had its answer: with its address, the phase that the exchange was in (`head`, `body`,
`queue`, `connect`, `wait` for the head of the answer, `silent` before its first byte, `stream`, `blocked` because the client did not read,
`tunnel`, `finish`), the name of the backend or None, the milliseconds until the backend's connection was closed or None, and the id of the
request. Hooks share one thread, one call after the other; they may wait, but of clients beyond the 1,024 that wait for them they are not
told. `llmpipe_hook_calls_total` counts the calls by hook and result.
"""

_FILE_ONLY = ("backends",)
"""Settings whose key in the file is a table."""

_KINDS = {
    "secret": "secret",
    "s": "duration",
    "bytes": "size",
    "choice": "choice",
    "switch": "switch",
    "share": "number",
}

# What a reader could type, and what Markdown would take for a link: an address or an option of one, and what stands in quotes.
_LITERAL = re.compile(r"(?<![\w'])'([^' ]+)'|(?<!\S)((?:http://|unix:|\?)[^\s,;]+?)(?=[,;.:]?(?:\s|$))")


def _mark(text: str) -> str:
    """Plain text as Markdown, for a cell of a table."""
    parts = _LITERAL.split(text)
    plain, literals = parts[::3], [quoted or bare for quoted, bare in zip(parts[1::3], parts[2::3], strict=True)]
    marked = [plain[0].replace("*", r"\*")]
    for literal, behind in zip(literals, plain[1:], strict=True):
        marked += [f"`{literal}`", behind.replace("*", r"\*")]
    return "".join(marked).replace("|", r"\|")


def _row(setting: Setting) -> str:
    kind = _KINDS.get(setting.unit, setting.unit)
    cells = [
        f"`{setting.flag}`",
        f"`{setting.variable}`",
        f"`{setting.key}`" if setting.name not in _FILE_ONLY else f"`[[{setting.name}]]`",
        f"list of {kind}" if setting.is_list else kind,
        setting.shown_default
        if setting.computed_default or not setting.default_texts
        else f"`{setting.shown_default}`",
        setting.range,
        _mark(setting.description),
    ]
    return f"| {' | '.join(cells)} |"


def _table(title: str, struct: type[Struct]) -> str:
    rows = "\n".join(map(_row, describe(struct)))
    return f"""
## {title}

| flag | variable | key | type or unit | default | range | what it does |
|---|---|---|---|---|---|---|
{rows}
"""


def page() -> str:
    """The whole of docs/configuration.md."""
    return HEAD + "".join(_table(title, struct) for title, struct in SCOPES.items())
