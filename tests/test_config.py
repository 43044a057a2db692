"""Units, addresses and backend URLs, as `llmpipe.config` reads them."""

from __future__ import annotations

import pytest

from llmpipe import config
from llmpipe.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("5", 5.0),
        ("2.5", 2.5),
        ("250ms", 0.25),
        ("5s", 5.0),
        ("10m", 600.0),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        (" 5s ", 5.0),
        ("1000000000", 1e9),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert config.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "-1", "+1", "1 s", "5x", "1d", "1e3", "nan", "inf", ".5", "1_000", "1S", "2e9"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="duration"):
        config.parse_duration(text)


def test_a_duration_beyond_the_engines_clock() -> None:
    with pytest.raises(UsageError, match="too long"):
        config.parse_duration("999999999h")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("512B", 512), ("8KB", 8192), ("8kb", 8192), ("64MB", 64 << 20), ("1GB", 1 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert config.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KB", "-1", "1.5MB", "1 MB", "1TB", "1K", "0x10", "1_000"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="size"):
        config.parse_size(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:8080", ("::1", 8080)),
        (":8080", ("0.0.0.0", 8080)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert config.parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:80", "h:-1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="address"):
        config.parse_address(text)


@pytest.mark.parametrize("address", [("127.0.0.1", 80), ("::1", 80), ("name", 0)])
def test_an_address_is_read_as_it_is_written(address: tuple[str, int]) -> None:
    assert config.parse_address(config.format_address(*address)) == address


@pytest.mark.parametrize(
    ("text", "url", "host", "port", "authority"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", "127.0.0.1", 8000, b"127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000", "127.0.0.1", 8000, b"127.0.0.1:8000"),
        ("HTTP://Vllm-0.example:8000", "http://vllm-0.example:8000", "vllm-0.example", 8000, b"vllm-0.example:8000"),
        ("http://vllm", "http://vllm:80", "vllm", 80, b"vllm:80"),
        ("http://[::1]:8000", "http://[::1]:8000", "::1", 8000, b"[::1]:8000"),
    ],
)
def test_http_backends(text: str, url: str, host: str, port: int, authority: bytes) -> None:
    backend = config.parse_backend(text)
    assert (backend.url, backend.host, backend.port, backend.path) == (url, host, port, "")
    assert backend.authority.encode() == authority
    assert not backend.finish_on_abort


def test_unix_backends() -> None:
    backend = config.parse_backend("unix:/run/vllm.sock")
    assert (backend.url, backend.host, backend.path) == ("unix:/run/vllm.sock", "", "/run/vllm.sock")
    assert backend.authority == "localhost"


@pytest.mark.parametrize("base", ["http://127.0.0.1:8000", "unix:/run/vllm.sock"])
@pytest.mark.parametrize(("query", "finish"), [("?on-abort=finish", True), ("?on-abort=close", False), ("?", False)])
def test_options_of_backends(base: str, query: str, finish: bool) -> None:
    backend = config.parse_backend(base + query)
    assert backend.finish_on_abort is finish
    assert backend.url == base


def test_i5_what_the_addresses_of_a_name_are() -> None:
    assert config.parse_backend("http://vllm:8000").addresses == "all"
    assert config.parse_backend("http://vllm:8000?addresses=all").addresses == "all"
    assert config.parse_backend("http://vllm:8000?addresses=first").addresses == "first"
    with pytest.raises(UsageError, match="addresses is all or first, not 'one'"):
        config.parse_backend("http://vllm:8000?addresses=one")


def test_a_backends_place_in_its_pool() -> None:
    backend = config.parse_backend("http://vllm:8000?weight=3&tier=1&name=gpu-1")
    assert (backend.name, backend.url, backend.weight, backend.tier) == ("gpu-1", "http://vllm:8000", 3, 1)
    assert backend == config.parse_backend("http://vllm:8000?name=gpu-1")  # the same server


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no scheme"),
        ("vllm:8000", "no scheme"),
        ("//vllm:8000", "no scheme"),
        ("https://vllm:8000", "TLS to backends is not supported"),
        ("HTTPS://vllm:8000", "TLS to backends is not supported"),
        ("ftp://vllm", "scheme 'ftp' is unknown"),
        ("http://", "no valid host"),
        ("http://:8000", "no valid host"),
        ("http://-vllm:8000", "no valid host"),
        ("http://v%41lm:8000", "no valid host"),
        ("http://user@vllm:8000", "has a user name"),
        ("http://vllm:8000/v1", "path that ends with /v1"),
        ("http://vllm:8000/llm/v1/", "path that ends with /v1"),
        ("http://vllm:8000/" + "a" * 300, "path of more than 255"),
        ("http://vllm:8000/ä", "write them as %XX"),
        ("http://vllm:8000#x", "has a fragment"),
        ("http://vllm:0", "port 0"),
        ("http://vllm:65536", "not a URL"),
        ("http://vllm:80a", "not a URL"),
        ("http://[::1", "not a URL"),
        ("http://vl\nlm:8000", "white space"),
        ("http://vllm:8000 ", "white space"),
        ("unix:", "absolute path"),
        ("unix:run/vllm.sock", "absolute path"),
        ("unix:/run/\0.sock", "control character"),
        ("http://vllm:8000?on-abort", "on-abort is close or finish"),
        ("http://vllm:8000?wight=2", "'wight' is unknown"),
        ("http://vllm:8000?weight=0", "weight is from 1 to 1000, not 0"),
        ("http://vllm:8000?weight=two", "'two' is not a whole number"),
        ("http://vllm:8000?tier=-1", "tier is from 0 to 1000, not -1"),
        ("http://vllm:8000?name=a b", "white space"),
        ("http://vllm:8000?name=", "name is a letter or digit"),
    ],
)
def test_what_is_no_backend(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        config.parse_backend(text)


def test_backends_are_named_once_and_not_without_limit() -> None:
    urls = ["http://vllm:8000", "http://vllm:8001"]
    assert [backend.url for backend in config.parse_backends(urls, 2)] == urls
    with pytest.raises(UsageError, match="named twice"):
        config.parse_backends(["http://vllm:80", "http://vllm?on-abort=finish"], 9)
    with pytest.raises(UsageError, match="more than the 1"):
        config.parse_backends(urls, 1)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        config.PoolSettings().max_body = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config.Settings().pool = config.PoolSettings()  # type: ignore[misc]
