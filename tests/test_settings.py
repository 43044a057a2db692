"""Each setting is described once; its flag, its variable, its checks and what the engine is told come of that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmpipe import _pipe, cli
from llmpipe.config import PoolSettings, ProcessSettings, ServeConfig, Settings
from llmpipe.settings import NOTATIONS, Setting, describe, read

CONFIGURATION = Path(__file__).parents[1] / "docs" / "configuration.md"

PROCESS, POOL = describe(ProcessSettings), describe(PoolSettings)
EVERY = pytest.mark.parametrize("setting", [*PROCESS, *POOL], ids=lambda setting: setting.name)


@EVERY
def test_every_setting_is_described(setting: Setting) -> None:
    assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", setting.flag)
    assert re.fullmatch(r"LLMPIPE_[A-Z]+(_[A-Z]+)*", setting.variable)
    assert setting.description.endswith(".")
    assert setting.unit in NOTATIONS
    assert setting.range
    assert setting.shown_default


@EVERY
def test_every_default_can_be_written_and_is_allowed(setting: Setting) -> None:
    assert not setting.is_switch or setting.default is False
    assert all(setting.choices == () or text in setting.choices for text in setting.default_texts)
    parsed = [setting.parse(text) for text in setting.default_texts]
    if setting.default is None:
        assert parsed == []
        return
    assert setting.gather(parsed if setting.is_list else parsed[0]) == setting.default


def test_no_flag_stands_for_two_settings_and_all_are_options_of_serve() -> None:
    settings = [*PROCESS, *POOL]
    assert len({setting.flag for setting in settings}) == len(settings)
    options = {flag: param.envvar for param in cli.cli.commands["serve"].params for flag in param.opts}
    assert options.pop("--demo") == "LLMPIPE_DEMO"
    assert options.pop("--config") == "LLMPIPE_CONFIG"
    assert options == {setting.flag: setting.variable for setting in settings}


def serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which `llmpipe serve` refuses these options."""
    monkeypatch.setattr("sys.argv", ["llmpipe", "serve", "--demo", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("Error: ")
    assert line.count("\n") == 1
    return line


def out_of_range(setting: Setting) -> list[str]:
    """The nearest numbers that can be written and are out of range."""
    assert setting.bounds is not None
    least, most = setting.bounds
    texts = [f"{most + 1:.0f}"]
    if least > 0 or setting.notation.kind == "integer":
        texts.append(f"{least - 1 if least >= 1 or not least else least / 2:g}")
    return texts


BOUNDED = [setting for setting in [*PROCESS, *POOL] if setting.bounds]


@pytest.mark.parametrize(
    ("setting", "text"),
    [(setting, text) for setting in BOUNDED for text in out_of_range(setting)],
    ids=[f"{setting.name}={text}" for setting in BOUNDED for text in out_of_range(setting)],
)
def test_what_is_out_of_range_is_refused_with_the_flag_the_variable_and_the_range(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: Setting, text: str
) -> None:
    # Above a billion seconds there is no duration at all.
    said = (f"{text} is not in the range {setting.range}\n", "the most is 1000000000 seconds")
    line = serve(monkeypatch, capsys, setting.flag, text)
    assert f"'{setting.flag}' (env var: '{setting.variable}')" in line
    assert any(words in line for words in said)
    monkeypatch.setenv(setting.variable, text)
    line = serve(monkeypatch, capsys)
    assert f"'{setting.flag}' (env var: '{setting.variable}')" in line
    assert any(words in line for words in said)


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_the_ends_of_a_range_are_allowed_and_the_engine_has_room_for_them(setting: Setting) -> None:
    assert setting.bounds is not None
    for end in setting.bounds:
        assert setting.parse(setting.notation.format(end)) == end
        value: Any = type(setting.default)(end)
        struct = ProcessSettings if setting in PROCESS else PoolSettings
        told = msgspec.convert({setting.name: value}, struct)
        assert getattr(told, setting.name) == value
        _pipe.Engine(Settings(**{"process" if setting in PROCESS else "pool": told})).close()


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_the_structs_themselves_refuse_what_is_out_of_range(setting: Setting) -> None:
    assert setting.bounds is not None
    struct = ProcessSettings if setting in PROCESS else PoolSettings
    for value in (setting.bounds[0] - 1, setting.bounds[1] + 1):
        with pytest.raises(msgspec.ValidationError, match=rf"\$\.{setting.name}"):
            msgspec.convert({setting.name: value}, struct)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({f"{setting.name}s": 1}, struct)


@pytest.mark.parametrize("text", ["", "x", "1.5", "0x10", "1_0", "\u0661", "+-1"])
def test_what_is_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert "is not a whole number" in serve(monkeypatch, capsys, "--max-fields", text)


def test_choices_have_no_case_and_become_what_they_say() -> None:
    command = cli.cli.commands["serve"]
    words = [
        "--retry-status",
        "503",
        "--retry-status",
        "429",
        "--on-midstream-error",
        "EVENT",
        "--log-level",
        "Warning",
        "--exchanges-kept",
        "0",
    ]
    options = command.make_context("serve", words).params
    assert read(PoolSettings, options) == PoolSettings(retry_statuses=frozenset((429, 503)), on_midstream_error="event")
    assert read(ProcessSettings, options) == ProcessSettings(log_level="warning", exchanges_kept=0)
    assert not read(ProcessSettings, options).access_records


@pytest.mark.parametrize(
    ("words", "lines", "records"),
    [
        ({}, True, True),
        ({"log_level": "debug"}, True, True),
        ({"log_level": "warning"}, False, True),  # for /exchanges
        ({"log_level": "warning", "exchanges_kept": 0}, False, False),
        ({"log_level": "warning", "admin": None}, False, False),
        ({"access_log": "off", "exchanges_kept": 0}, False, False),
        ({"access_log": "/f", "log_level": "error"}, True, True),
        ({"access_log": "./off", "log_level": "error"}, True, True),
        ({"access_log": "off", "log_level": "error", "exchanges_kept": 0}, False, False),
        ({"access_log": "off", "otel": True, "exchanges_kept": 0}, False, True),
        ({"log_level": "error", "otel": True, "exchanges_kept": 0}, False, True),
    ],
)
def test_which_settings_have_the_engines_report_every_exchange(
    words: dict[str, Any], lines: bool, records: bool
) -> None:
    process = ProcessSettings(**words)
    assert (process.access_lines, process.access_records) == (lines, records)


@pytest.mark.parametrize("text", ["", "x", "-1", "1e-3", ".5", "0.1234567", "1_0", "\u0661", "nan"])
def test_what_is_no_share(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert "is not a part of a whole" in serve(monkeypatch, capsys, "--access-sample", text)


class Noted:
    """Settings that note which of them are read."""

    def __init__(self, settings: object, names: set[str]) -> None:
        self._settings = settings
        self._names = names

    def __getattr__(self, name: str) -> object:
        self._names.add(name)
        return getattr(self._settings, name)


def test_the_engine_reads_every_setting_that_is_not_for_the_control_plane() -> None:
    process: set[str] = set()
    pool: set[str] = set()
    told: Any = Settings()
    noted: Any = type("Both", (), {"process": Noted(told.process, process), "pool": Noted(told.pool, pool)})()
    _pipe.Engine(noted).close()
    control_plane = {"listen", "workers", "admin", "admin_hosts", "admin_token"}
    control_plane |= {"max_connections", "max_connections_per_ip"}
    control_plane |= {"drain_timeout", "upgrade_timeout", "pid_file", "log_level", "log_format", "log_query", "watch"}
    control_plane |= {"exchanges_kept"}
    control_plane |= {"access_log", "access_sample", "otel"}
    control_plane |= {"record", "record_share", "record_size", "record_files", "record_request_bodies"}
    checks = {"health_path", "health_interval", "health_timeout", "health_rise", "health_fall"}
    assert pool == {setting.name for setting in POOL} - {"backends"} - checks
    assert process == {setting.name for setting in PROCESS} - control_plane | {"access_records"}


@pytest.mark.parametrize(
    "settings",
    [
        Settings(process=ProcessSettings(max_head=_pipe.MAX_HEAD + 1)),
        Settings(process=ProcessSettings(max_head=-1)),
        Settings(process=ProcessSettings(max_head=1 << 70)),
        Settings(process=ProcessSettings(max_request_line=_pipe.MAX_HEAD + 1)),
        Settings(process=ProcessSettings(max_fields=_pipe.MAX_FIELDS + 1)),
        Settings(process=ProcessSettings(max_fields=-1)),
        Settings(process=ProcessSettings(kept_memory=-1)),
        Settings(process=ProcessSettings(head_timeout=float("nan"))),
        Settings(process=ProcessSettings(head_timeout=float("inf"))),
        Settings(pool=PoolSettings(max_response_head=_pipe.MAX_HEAD + 1)),
        Settings(pool=PoolSettings(max_response_fields=_pipe.MAX_FIELDS + 1)),
        Settings(pool=PoolSettings(failover_body=_pipe.MAX_FAILOVER_BODY + 1)),
        Settings(pool=PoolSettings(max_body=1 << 63)),
        Settings(pool=PoolSettings(connect_timeout=-1.0)),
        Settings(pool=PoolSettings(ttft_timeout=_pipe.MAX_SECONDS + 1.0)),
    ],
)
def test_an_engine_is_not_made_of_what_it_has_no_room_for(settings: Settings) -> None:
    """A program may make settings without reading them: nobody has looked at their ranges."""
    with pytest.raises(ValueError, match=r"must be from|out of range"):
        _pipe.Engine(settings)


def test_settings_of_serve_cannot_be_changed() -> None:
    config = ServeConfig(settings=Settings(), demo=False)
    with pytest.raises(AttributeError):
        config.demo = True  # type: ignore[misc]


@pytest.mark.parametrize(("title", "settings"), [("The pool of backends", POOL), ("The process", PROCESS)])
def test_every_setting_has_a_row_in_the_table_of_its_scope(title: str, settings: tuple[Setting, ...]) -> None:
    section = CONFIGURATION.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in section.splitlines() if "`--" in line
    ]
    assert [row[0] for row in rows] == [f"`{setting.flag}`" for setting in settings]
    for setting, (_, variable, key, unit, default, allowed, text) in zip(settings, rows, strict=True):
        assert variable == f"`{setting.variable}`"
        assert key == f"`{setting.key}`" or (key, setting.name) == ("`[[backends]]`", "backends")
        assert default.strip("`") == setting.shown_default
        assert allowed == setting.range
        assert unit
        assert text.endswith(".")
