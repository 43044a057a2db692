"""What the flags, the environment, the file and the defaults come to, in this order (rule I1), and where each value is from."""

from collections.abc import Iterator
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from msgspec import Struct

from llmpipe import config_file
from llmpipe.config import Backend, Pool, PoolSettings, ProcessSettings, Settings
from llmpipe.errors import UsageError
from llmpipe.log import mask_secrets
from llmpipe.settings import Setting, describe, read

S = TypeVar("S", bound=Struct)


def _backend_line(backend: Backend) -> str:
    rest = [f"weight {backend.weight}", f"tier {backend.tier}"]
    if backend.max_in_flight:
        rest.append(f"max_in_flight {backend.max_in_flight}")
    if backend.name != backend.url:
        rest.insert(0, backend.url)
    if backend.host_field:
        rest.append(f"host {backend.host_field}")
    if backend.addresses != "all":
        rest.append(f"addresses {backend.addresses}")
    if backend.finish_on_abort:
        rest.append("on_abort finish")
    if backend.abort_call:
        rest.append(f"on_abort call {mask_secrets(backend.abort_call.url)} {backend.abort_call.field}")
    return f"backend {backend.name} ({', '.join(rest)})"


class Effective:
    """The settings of one command, made anew whenever the file is read again."""

    def __init__(self, context: click.Context, path: str) -> None:
        """Args:
        context: of a command that has an option for each setting.
        path: of the file; empty for none.
        """
        self._options = context.params
        self._settings = {
            setting.name: setting for struct in (ProcessSettings, PoolSettings) for setting in describe(struct)
        }
        self._sources = {name: context.get_parameter_source(name) for name in self._settings}
        self._path = path
        self._demo = bool(context.params.get("demo"))
        self._file = config_file.File(path=path, values={}, pools=(), routes=(), default_pool="")
        """As it was read last; one without a word where there is none."""

    def _said(self, name: str) -> bool:
        """Whether a flag or a variable has it: then it counts more than the file."""
        return self._sources[name] in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)

    def _make(self, struct: type[S], values: dict[str, Any]) -> S:
        """A struct of the options, and of the file's values where no flag or variable says otherwise."""
        return read(struct, self._options, {name: value for name, value in values.items() if not self._said(name)})

    def load(self) -> Settings:
        """Reads the file, where there is one, and puts all together.

        Raises:
            UsageError: something in it cannot work; `config_file.FileError` has a line for each fault.
        """
        if not self._path:
            return Settings(process=self._make(ProcessSettings, {}), pool=self._make(PoolSettings, {}))
        file = config_file.read(self._path)
        if file.pools and self._demo:
            raise UsageError("--demo brings its own backend; leave out --config, or leave out --demo")
        if file.pools and self._said("backends"):
            raise UsageError(f"{self._path} has pools of its own; leave out {self._shown_source('backends')}")
        settings = file.settings(
            lambda values: self._make(ProcessSettings, values), lambda values: self._make(PoolSettings, values)
        )
        if not settings.backends and not self._demo:
            raise UsageError(
                f"{self._path} has no pool; add [[pools.NAME.backends]] with a url, or name a backend with --backend http://HOST:PORT"
            )
        self._file = file
        return settings

    def _shown_source(self, name: str) -> str:
        setting = self._settings[name]
        return setting.flag if self._sources[name] == ParameterSource.COMMANDLINE else setting.variable

    def lines(self, settings: Settings) -> Iterator[str]:
        """The settings as a person reads them, each with where it is from: of the file as it was loaded."""
        file = self._file
        for setting in describe(ProcessSettings):
            yield self._line(setting, settings.process, file.values)
        values = {pool.name: pool.values for pool in file.pools}
        for pool in settings.all_pools:
            yield ""
            yield f"[pools.{pool.name}]"
            yield from self._pool_lines(pool, values.get(pool.name, {}))
        for route in settings.routes:
            yield ""
            yield f"route {' and '.join(part for part in (route.path, route.header) if part)} -> {route.pool}"
        if settings.default_pool:
            yield f"default_pool = {settings.default_pool}"

    def _pool_lines(self, pool: Pool, values: dict[str, Any]) -> Iterator[str]:
        for backend in pool.settings.backends:
            yield _backend_line(backend)
        if pool.models:
            yield f"models = {', '.join(pool.models)}"
        for alias, model in pool.aliases.items():
            yield f"alias {alias} -> {model}"
        for setting in describe(PoolSettings):
            if setting.name != "backends":
                yield self._line(setting, pool.settings, values)

    def _line(self, setting: Setting, struct: Struct, values: dict[str, Any]) -> str:
        value = getattr(struct, setting.name)
        members = (
            setting.notation.members(value)
            if setting.is_list
            else []
            if value is None and setting.is_secret
            else [value]
        )
        shown = ", ".join(setting.notation.format(member) for member in members) or "none"
        source = "default"
        if self._said(setting.name):
            source = self._shown_source(setting.name)
        elif setting.name in values:
            source = self._path
        return f"{f'{setting.name} = {shown}':<60} # {source}"
