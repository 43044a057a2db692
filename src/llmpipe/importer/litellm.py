"""Files of LiteLLM's proxy: `model_list`, of which each model_name becomes a pool, and the settings beside it.

The format: https://docs.litellm.ai/docs/proxy/config_settings.
"""

import os
from dataclasses import dataclass
from fractions import Fraction

from llmpipe._pipe import MAX_WEIGHT
from llmpipe.errors import UsageError
from llmpipe.importer.document import Table, kind, read_yaml
from llmpipe.importer.draft import Block, Draft, PoolDraft, split_url

_OPENAI = frozenset(
    {
        "custom_openai",
        "docker_model_runner",
        "hosted_vllm",
        "lemonade",
        "litellm_proxy",
        "llamafile",
        "lm_studio",
        "openai",
    }
    | {"openai_like", "text-completion-openai", "xinference"}
)
"""Providers whose servers are asked at /v1, so that a request can go on as it is."""

_OLLAMA = frozenset({"ollama", "ollama_chat"})

_ENVIRONMENT = "os.environ/"

_LAST = 1 << 60
"""The order of a deployment that has none, beside others that have one."""

_KEYS = "keys are not carried over. llmpipe passes on the Authorization field of the client, and asks for no key itself"

_LEFT_OUT = (
    "a backend that fails is left out for 100 ms to 10 s, and one that answers with 5xx after as many of them as eject = { errors = 5 }"
    ' says; for checks write health = { path = "/health" }'
)

_NEXT = "a pool with several backends asks the next one after a 429 or 503; retry = { statuses = [...] } says otherwise"

_ROUTER = {
    "fallbacks": "no pool hands requests over to another; add a spare server of the same model to the pool, with tier = 1",
    "default_fallbacks": "no pool hands requests over to another; default_pool gets the requests for unknown models",
    "context_window_fallbacks": "llmpipe does not look into prompts",
    "content_policy_fallbacks": "llmpipe does not look into answers",
    "allowed_fails": _LEFT_OUT,
    "cooldown_time": _LEFT_OUT,
    "default_max_parallel_requests": "write max_in_flight into the backends",
    "enable_pre_call_checks": "llmpipe does not look into prompts",
    "retry_policy": _NEXT,
}

_GENERAL = {
    "master_key": _KEYS,
    "database_url": "there is no database; keys, users and budgets are not carried over",
    "background_health_checks": 'write health = { path = "/health" } into a pool whose servers have that path',
    "max_parallel_requests": "write max_in_flight into the pools or their backends",
    "global_max_parallel_requests": "no limit is one for all pools together; write max_in_flight into each",
}

_PARAMS = {
    "api_key": _KEYS,
    "rpm": "there are no limits on the rate of requests",
    "tpm": "there are no limits on the rate of tokens",
    "stream_timeout": "the time-outs of a pool are the same for streams and other answers",
    "max_retries": _NEXT,
}

_SETTINGS = {
    "cache": "nothing is cached",
    "cache_params": "nothing is cached",
    **dict.fromkeys(
        ("callbacks", "success_callback", "failure_callback"),
        "metrics are at /metrics of the admin endpoint, and each exchange has a line in the log",
    ),
}

_NO_STORE = "the counts of a process are its own; there is no store"
_NO_SETTING = "llmpipe has no such setting"
_UNCHANGED = "llmpipe has no such setting; requests and answers go on unchanged"


@dataclass
class _Deployment:
    """A server of a model."""

    where: str
    url: str
    model: str
    """The name that the server knows it by."""
    host: str
    weight: float
    order: int
    most: int
    """Requests at a time; 0 is no limit."""


def read(path: str) -> Draft:
    """What a LiteLLM configuration comes to.

    Raises:
        UsageError: it is none.
    """
    document = read_yaml(path)
    draft = Draft("Made by llmpipe import litellm.")
    draft.top.note(
        "Clients ask for /v1/..., as those of OpenAI do. To listen where LiteLLM does unless told otherwise:"
    )
    draft.top.note('listen = ["0.0.0.0:4000"]')
    settings = document.table("litellm_settings")
    router = document.table("router_settings")
    variables = document.table("environment_variables")
    timeout, statuses = _read_router(draft, router, settings)
    if settings.flag("json_logs"):
        draft.top.set(settings.where("json_logs"), "log_format", "json")
    general = document.table("general_settings")
    groups = _read_models(draft, document, variables)
    for name, (pool, target, own_timeout) in groups.items():
        where = f"model_name {name}"
        seconds = timeout if own_timeout is None else own_timeout
        if seconds is not None:
            pool.set(where, "ttft_timeout", seconds)
            pool.set(where, "idle_timeout", seconds)
        if statuses:
            pool.set(where, "retry.statuses", statuses)
        pool.claim(where, name, target)
    _read_aliases(draft, router.table("model_group_alias"), groups)
    _lose(draft.end, router, _ROUTER, _NO_SETTING)
    _lose(draft.end, settings, {**_ROUTER, **_SETTINGS}, _UNCHANGED)
    _lose(draft.end, general, _GENERAL, _NO_SETTING)
    _lose(draft.end, variables, {}, "set it in the environment of what reads it")
    _lose(draft.end, document, {"include": "import the included files by themselves"}, _NO_SETTING)
    return draft


def _lose(block: Block, table: Table, reasons: dict[str, str], otherwise: str) -> None:
    """Notes what of a table nothing has read."""
    for key in table.left():
        block.lost(table.where(key), _NO_STORE if key.startswith("redis") else reasons.get(key, otherwise))


def _read_router(draft: Draft, router: Table, settings: Table) -> tuple[float | None, list[int]]:
    """(time-out in seconds, statuses after which the next backend is asked) of every pool."""
    strategy = router.text("routing_strategy")
    if strategy and strategy != "least-busy":
        why = (
            "the backend with the fewest requests in flight for its weight is chosen;"
            ' policy = "round_robin" or "p2c" in a pool says otherwise'
        )
        draft.top.lost(router.where("routing_strategy"), why)
    retries = router.number("num_retries")
    if retries is None:
        retries = settings.number("num_retries")
    if retries:
        draft.top.note(
            f"{router.where('num_retries')}: not a number but a budget of the process; after 429, 502 and 503 the next backend of"
            " a pool is asked, and a request that a backend has begun to answer is never sent again."
        )
    timeouts = [router.number("timeout"), settings.number("request_timeout")]
    return next((value for value in timeouts if value is not None), None), [429, 502, 503] if retries else []


def _read_models(draft: Draft, document: Table, variables: Table) -> dict[str, tuple[PoolDraft, str, float | None]]:
    """The pool of each model_name, the name that its backends know, and the longest time-out of its own."""
    rows: dict[str, list[tuple[str, Table]]] = {}
    for number, row in enumerate(document.tables("model_list")):
        where = f"model_list[{number}]"
        name = row.text("model_name")
        if not name:
            draft.refuse(draft.end, where, "it has no model_name")
            continue
        rows.setdefault(name, []).append((where, row))
    groups = {}
    for name, members in rows.items():
        pool = draft.add_pool(name)
        target, timeout = _read_group(draft, pool, name, members, variables)
        if pool.members:
            groups[name] = (pool, target, timeout)
    return groups


def _read_group(
    draft: Draft, pool: PoolDraft, name: str, rows: list[tuple[str, Table]], variables: Table
) -> tuple[str, float | None]:
    """Adds the deployments of a model_name to its pool: (the name that they know the model by, the longest of their time-outs)."""
    found = []
    timeouts = []
    lost: dict[str, str] = {}
    """Where each key that nothing has read is first."""
    for where, row in rows:
        params = row.table("litellm_params")
        info = row.table("model_info")  # of the rest, which are prices and the like, nothing would be forwarded
        try:
            found.append(_read_deployment(where, name, params, info, variables))
        except _NoDeploymentError as error:
            draft.refuse(pool, f"{where}.{error.key}", str(error))
            continue
        seconds = params.number("timeout")
        if seconds is not None:
            timeouts.append(seconds)
        for table in (params, row):
            for key in table.left():
                lost.setdefault(key, table.where(key))
    target = _add_backends(pool, name, found)
    for key, where in lost.items():
        pool.lost(where, _PARAMS.get(key, _UNCHANGED))
    return target, max(timeouts, default=None)


def _add_backends(pool: PoolDraft, name: str, found: list[_Deployment]) -> str:
    """Adds the deployments that know the model by the name that the first one knows it by; that name."""
    found.sort(key=lambda deployment: deployment.order)  # stable: of the same order the first of the file counts
    target = found[0].model if found else ""
    same = [deployment for deployment in found if deployment.model == target]
    weights = _scale([deployment.weight for deployment in same])
    for deployment, weight in zip(same, weights, strict=True):
        pool.add_backend(
            f"{deployment.where}.litellm_params.api_base",
            deployment.url,
            deployment.host,
            weight=weight,
            tier=deployment.order,
            max_in_flight=deployment.most,
        )
    if weights != [deployment.weight for deployment in same]:
        pool.note("The weights are whole numbers here, with about the same ratio.")
    for deployment in found:
        if deployment.model != target:
            pool.lost(
                f"{deployment.where} ({deployment.url})",
                f"it knows the model as {deployment.model!r} and the others of {name!r} as {target!r}, but a pool can put only one"
                f" name into requests; let the server know it as {target!r} too (vLLM: --served-model-name), and add it here",
            )
    return target


class _NoDeploymentError(Exception):
    """Nothing can be made of a deployment; the text says why."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


def _read_deployment(where: str, name: str, params: Table, info: Table, variables: Table) -> _Deployment:
    provider, model = _split_model(params)
    order = params.whole("order", info.whole("order", _LAST))
    weight = params.number("weight")
    most = max(0, params.whole("max_parallel_requests", 0))
    base = params.text("api_base") or params.text("base_url")
    if provider not in _OPENAI | _OLLAMA:
        raise _NoDeploymentError(
            "litellm_params.model",
            f"LiteLLM translates requests for the provider {provider!r}, and llmpipe forwards them unchanged; name a server that"
            " speaks the API of OpenAI"
            if provider
            else 'it has no provider before the name, such as "openai/"',
        )
    if not base and provider in _OLLAMA:
        base = "http://localhost:11434"
    if not base:
        raise _NoDeploymentError(
            "litellm_params.api_base",
            "there is none, so it is a provider in the cloud; only servers of your own can be backends",
        )
    if base.startswith(_ENVIRONMENT):
        variable = base.removeprefix(_ENVIRONMENT)
        base = variables.text(variable) or os.environ.get(variable, "")
        if not base or base.startswith(_ENVIRONMENT):
            raise _NoDeploymentError(
                "litellm_params.api_base",
                f"it is in the variable {variable}, which is not set here; set it and import again",
            )
    try:
        url, rest = split_url(base)
    except UsageError as error:
        raise _NoDeploymentError("litellm_params.api_base", str(error)) from None
    if rest and not rest.endswith("/v1"):
        raise _NoDeploymentError(
            "litellm_params.api_base",
            f"{url} has a path behind it that does not end with /v1, as the paths do that clients ask for",
        )
    url += rest.removesuffix("/v1")
    if weight is not None and weight <= 0:
        raise _NoDeploymentError("litellm_params.weight", "it is 0, so it gets nothing")
    if name.endswith("*") and model.endswith("*") and model != name:
        raise _NoDeploymentError(
            "litellm_params.model",
            "a name with a * goes on as it is, and LiteLLM changes it here; write out the models",
        )
    return _Deployment(
        where, url, model, "backend" if provider in _OLLAMA else "", 1 if weight is None else weight, order, most
    )


def _split_model(params: Table) -> tuple[str, str]:
    """(provider, the name that the server gets)."""
    model = params.text("model")
    if not model:
        raise _NoDeploymentError("litellm_params.model", "there is none")
    if model.startswith(_ENVIRONMENT):
        raise _NoDeploymentError("litellm_params.model", "it is in a variable; write the name of the model")
    provider, slash, rest = model.partition("/")
    if given := params.text("custom_llm_provider"):
        return given, rest if slash and provider == given else model
    if not slash:
        # LiteLLM tells a bare name by its own list; one with a server of its own is asked as OpenAI's are.
        return ("openai" if "api_base" in params or "base_url" in params else ""), model
    return provider, rest


def _scale(weights: list[float]) -> list[int]:
    """Weights as whole numbers of 1 to MAX_WEIGHT."""
    exact = [Fraction(weight).limit_denominator(1000) for weight in weights]
    if all(weight.denominator == 1 and weight <= MAX_WEIGHT for weight in exact):
        return [max(1, int(weight)) for weight in exact]
    largest = max(exact)
    return [max(1, round(weight / largest * 100)) for weight in exact]


def _read_aliases(draft: Draft, aliases: Table, groups: dict[str, tuple[PoolDraft, str, float | None]]) -> None:
    for alias in aliases:
        where = aliases.where(alias)
        value = aliases.raw(alias)
        name = value.get("model") if isinstance(value, dict) else value
        if not isinstance(name, str):
            raise aliases.fault(where, f"the name of a model is expected here, not {kind(name)}")
        if name not in groups:
            draft.end.lost(where, "the model that it stands for is not carried over either")
            continue
        pool, target, _ = groups[name]
        pool.claim(where, alias, target)
        if isinstance(value, dict) and value.get("hidden"):
            pool.lost(f"{where}.hidden", "GET /v1/models lists every name")
