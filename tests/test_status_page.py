"""The page of a running proxy, as a browser shows it (rule S1): Debian's Chromium, without a head."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import tools
from harness import TIMEOUT, Client, Mock, Proxy, answer_all, free_port, wait_until
from playwright.sync_api import Browser, Page, sync_playwright
from test_events import Follower, status_of

from llmpipe.events import MOST_STREAMS

DASH = "\u2013"
LOST = "Connection lost, retrying"
EVIL = "<img/src=x/onerror=document.title='evil'>"
"""As a request id may be: without white space."""
BODY = {"model": "m", "stream": True, "max_tokens": 6, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=tools.tool("chromium", "chromium"), args=sandbox)
        yield browser
        browser.close()


class Site:
    """A proxy's page in the browser, and what it asked for and complained of."""

    def __init__(self, browser: Browser, proxy: Proxy, **options: Any) -> None:
        self.proxy = proxy
        self.url = f"http://127.0.0.1:{proxy.admin_port}/"
        self.page: Page = browser.new_page(**options)
        self.page.set_default_timeout(TIMEOUT * 1000)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, link: str = "Live") -> Page:
        self.page.goto(self.url)
        self.wait_link(link)
        return self.page

    def wait_link(self, words: str) -> None:
        self.page.locator("#link").get_by_text(words, exact=True).wait_for()

    def wait(self, found: Callable[[], object], what: str = "") -> None:
        """As wait_until, while the browser goes on."""
        left = [TIMEOUT]

        def step() -> object:
            self.page.wait_for_timeout(50)
            left[0] -= 0.05
            return found()

        wait_until(step, TIMEOUT, what)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def table(self, selector: str) -> list[list[str]]:
        """The texts of a table's rows, but for what stands below a cell's first line."""
        made: list[list[str]] = (
            self.page.locator(selector)
            .locator("tbody tr")
            .evaluate_all("rows => rows.map(row => [...row.children].map(cell => cell.innerText.split('\\n')[0]))")
        )
        return made

    def cards(self) -> dict[str, list[str]]:
        """By their titles, the figures of the cards."""
        made: dict[str, list[str]] = self.page.eval_on_selector_all(
            ".card",
            "cards => Object.fromEntries(cards.map(card => "
            "[card.querySelector('h3').textContent, [...card.querySelectorAll('dd')].map(value => value.textContent)]))",
        )
        return made


@pytest.fixture
def site(browser: Browser) -> Iterator[Callable[..., Site]]:
    """site(proxy, **options of the page): closed behind the test, which fails where the page complained of something, or asked
    somebody else."""
    sites: list[Site] = []

    def make(proxy: Proxy, **options: Any) -> Site:
        sites.append(Site(browser, proxy, **options))
        return sites[-1]

    yield make
    for found in sites:
        found.page.close()
        assert found.complaints == []
        assert {url.split("/")[2] for url in found.asked if not url.startswith("data:")} == {
            f"127.0.0.1:{found.proxy.admin_port}"
        }


def ask(proxy: Proxy, fault: str = "", request_id: str = "") -> None:
    """One exchange, which may break."""
    fields = {"x-mock-fault": fault, "x-request-id": request_id}
    fields = {name: value for name, value in fields.items() if value}
    try:
        httpx.post(f"{proxy.url}/v1/chat/completions", json=BODY, headers=fields, timeout=TIMEOUT)
    except httpx.RemoteProtocolError:
        assert fault


@pytest.fixture
def used(proxy_to) -> Iterator[Proxy]:
    """A proxy in front of a mock, behind a few exchanges of which two failed."""
    with Mock("--ttft", "20ms") as mock:
        proxy = proxy_to(mock.url)
        for _ in range(3):
            ask(proxy)
        ask(proxy, "die;after=2", "first-failure")
        wait_until(lambda: status_of(proxy)["ready"])
        ask(proxy, "die;after=3", EVIL)
        wait_until(lambda: len(status_of(proxy)["failures"]) == 2)
        yield proxy


# --- What is shown, as the page should write it ---


def amount(value: float) -> str:
    """Three digits, or all of a greater number; halves go up, as browsers have them."""
    exact = Decimal(value)
    places = max(0, 2 - exact.adjusted()) if 0 < value < 1000 else 0
    text = f"{exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):,f}"
    return text.rstrip("0").rstrip(".") if places else text


def rate(value: float) -> str:
    return f"{amount(value)}/s"


def seconds(value: float | None) -> str:
    if value is None:
        return DASH
    size, unit = next(((size, unit) for size, unit in ((1, "s"), (1e-3, "ms")) if value >= size), (1e-6, "µs"))
    return f"{amount(value / size)} {unit}"


def cards_of(status: dict[str, Any]) -> dict[str, list[str]]:
    rates = status["rates"]
    return {
        "Streams": [f"{status['streams']:,}"],
        "Exchanges": [rate(rates["exchanges"]), rate(rates["errors"])],
        "Tokens": [rate(rates["tokens"]), rate(rates["pieces"])],
        "Time to first token": [seconds(status["ttft"]["p50"]), seconds(status["ttft"]["p99"])],
        "Between tokens": [seconds(status["itl"]["p50"]), seconds(status["itl"]["p99"])],
        "Waiting requests": [f"{sum(pool['queue']['waiting'] for pool in status['pools']):,}"],
    }


def row_of(backend: dict[str, Any]) -> list[str]:
    """Without the last cell, which is a time that goes on."""
    return [
        backend["name"],
        backend["state"],
        f"{backend['in_flight']:,}",
        amount(backend["rates"]["exchanges"]),
        amount(backend["rates"]["errors"]),
        *(seconds(backend[kind][percentile]) for kind in ("ttft", "itl") for percentile in ("p50", "p99")),
        f"{backend['exchanges']:,}",
        f"{backend['failures']:,}",
    ]


def failure_of(failure: dict[str, Any]) -> list[str]:
    names = ("reason", "outcome", "phase", "status", "pool", "model", "backend", "request_id")
    return [failure["at"][11:23], *(DASH if failure[name] is None else str(failure[name]) for name in names)]


@pytest.mark.slow
def test_what_is_shown_is_the_status(used: Proxy, site) -> None:
    """Once nothing goes on any more. A sample may come between two looks, so it looks until both are of one moment."""
    shown = site(used)
    page = shown.open()

    def same() -> bool:
        status = status_of(used)
        return (
            status["ttft"]["p50"] is not None
            and shown.cards() == cards_of(status)
            and [row[:-1] for row in shown.table(".pool")] == [row_of(row) for row in status["pools"][0]["backends"]]
            and shown.table("#failures") == [failure_of(row) for row in status["failures"]]
        )

    shown.wait(same, "the page shows what /status does")
    status = status_of(used)
    assert shown.text("#version") == status["version"]
    assert shown.text("#pid") == str(status["pid"])
    assert shown.text("#up") == "1 of 1"
    assert shown.text("#ready") == "Ready"
    assert page.locator("#not-ready").is_hidden()
    assert re.fullmatch(r"\d+ s|\d+ min( \d+ s)?", shown.text("#uptime"))
    # The plots are of /history; their ends are its last sample.
    wait_until(lambda: len(json.loads(used.admin("/history")[1])["samples"]) > 0)
    label = page.locator(".plot svg").nth(0).get_attribute("aria-label")
    assert label == "Streams, the last 15 minutes. 0 last, 0 at least, 0 at most."


def fake_status(status: dict[str, Any]) -> str:
    return f"retry: 60000\n\nevent: status\ndata: {json.dumps(status)}\n\n"


def test_every_state_and_figure_has_its_words(proxy_to, site) -> None:
    """Of a status that no proxy could be brought to in a few seconds."""
    proxy = proxy_to(answer_all)
    status = status_of(proxy)
    plain = status["pools"][0]["backends"][0]
    changes: list[dict[str, Any]] = [
        {"name": "a", "state": "up", "in_flight": 1234, "rates": {"exchanges": 1234.5, "errors": 0.0}},
        {"name": "b", "state": "down", "why": ["health checks", "hung"], "ttft": {"p50": 2e-5, "p99": 1.2345}},
        {"name": "c", "state": "draining", "itl": {"p50": 0.01234, "p99": 12345.0}, "seconds_since_content": 7300.0},
        {"name": "d", "state": "drained", "rates": {"exchanges": 0.0, "errors": 0.25}, "seconds_since_content": 59.9},
        {"name": "e", "state": "unresolved", "error": EVIL},
        {"name": "f", "state": "down", "why": ["failures"]},
    ]
    rows = [{**plain, **change} for change in changes]
    queue = {"size": 300, "waiting": 4321, "full": 12, "late": 3}
    pool = {
        "name": EVIL,
        "models": [f"m{n}" for n in range(40)],
        "aliases": {"x": "m0"},
        "queue": queue,
        "backends": rows,
    }
    status |= {
        "ready": False,
        "reason": "draining",
        "rates": {"exchanges": 12.34, "errors": 0.5, "tokens": 23456.0, "pieces": 999.6},
        "ttft": {"p50": 0.1234, "p90": 1.0, "p99": 12.3456},
        "streams": 9001,
        "pools": [pool, {**pool, "name": "second", "backends": rows[:1]}],
        "default_pool": "second",
        "reload_faults": [EVIL, "another"],
    }
    shown = site(proxy)
    page = shown.page
    events = fake_status(status)
    page.route("**/events", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
    shown.open(LOST)
    assert shown.cards() == cards_of(status)
    assert shown.cards()["Tokens"] == ["23,456/s", "1,000/s"]
    assert [row[:-1] for row in shown.table(".pool >> nth=0")] == [row_of(row) for row in rows]
    first = page.locator(".pool").nth(0)
    assert [row[-1] for row in shown.table(".pool >> nth=0")] == [DASH, DASH, "2 h", "59 s", DASH, DASH]
    words = [text.split("\n")[1:] for text in first.locator("td:nth-child(2)").all_inner_texts()]
    assert words == [
        [],
        ["fails its health checks; all its streams fell silent"],
        [],
        [],
        [EVIL],
        ["failed, is left out for a while"],
    ]
    assert first.locator(".some").all_inner_texts() == ["0.25"]
    assert first.locator("h3").inner_text() == EVIL
    assert page.locator(".pool").nth(1).locator("h3").inner_text().split() == ["second", "default", "pool"]
    assert first.locator(".plan").inner_text().split("\n") == [
        *("Models", "m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11 and 28 more"),
        *("Aliases", "x \u2192 m0", "Queue", "4,321 of 300 waiting", "Refused", "12 as it was full, 3 too late"),
    ]
    assert shown.text("#up") == "2 of 7"
    assert shown.text("#ready") == "Not ready"
    assert shown.text("#not-ready") == "Not ready: draining."
    assert page.locator("#fault-list li").all_inner_texts() == [EVIL, "another"]
    assert page.title() == "llmpipe: not ready"
    assert page.locator("main img").count() == 0


@pytest.mark.slow
def test_it_follows_without_being_loaded_again(used: Proxy, site) -> None:
    shown = site(used)
    page = shown.open()
    page.evaluate("window.mark = 1")
    assert shown.cards()["Streams"] == ["0"]
    with Client(used) as client:
        client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Mock-Fault: hang;after=2\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(json.dumps(BODY)), json.dumps(BODY).encode())
        )
        client.read_head()
        shown.wait(lambda: shown.cards()["Streams"] == ["1"], "the stream")
        assert shown.table(".pool")[0][2] == "1"
    shown.wait(lambda: shown.cards()["Streams"] == ["0"], "its end")
    ask(used, "die;after=1", "while-it-looks")
    shown.wait(lambda: shown.table("#failures")[0][-1] == "while-it-looks", "the failure")
    points = "document.querySelector('.plot path.one').getAttribute('d').length"
    before = page.evaluate(points)
    shown.wait(lambda: page.evaluate(points) > before, "another sample")
    assert page.evaluate("window.mark") == 1


@pytest.mark.slow
def test_a_change_of_state_is_announced(proxy_to, site, tmp_path: Path) -> None:
    with Mock() as mock:
        path = tmp_path / "llmpipe.toml"
        health = 'health = { path = "/health", interval = "200ms", fall = 1 }'
        text = f'default_pool = "p"\n[pools.p]\n{health}\n[[pools.p.backends]]\nname = "gpu1"\nurl = "{mock.url}"\n'
        path.write_text(text)
        proxy = proxy_to(options=["--config", str(path)])
        shown = site(proxy)
        page = shown.open()
        shown.wait(lambda: shown.text("#ready") == "Ready")
        assert page.locator("#news").get_attribute("aria-live") == "polite"
        assert page.locator("#news").text_content() == ""
        mock.process.kill()
        shown.wait(lambda: shown.table(".pool")[0][1] == "down", "the state")
        assert page.locator("#news").text_content() == "p: gpu1 is down. Not ready: no backend is usable."
        assert shown.text("#ready") == "Not ready"
        path.write_text("nonsense")
        proxy.signal(signal.SIGHUP)
        shown.wait(lambda: page.locator("#faults").is_visible(), "the faults of the reload")
        assert page.locator("#fault-list li").all_inner_texts() == status_of(proxy)["reload_faults"]


@pytest.mark.slow
def test_it_says_that_the_connection_is_lost_and_comes_back_by_itself(browser: Browser) -> None:
    port = free_port()
    options = ["--admin", f"127.0.0.1:{port}"]
    backend = f"http://127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        first = stack.enter_context(Proxy(backend, options=options))
        shown = Site(browser, first)
        stack.callback(shown.page.close)
        page = shown.open()
        page.evaluate("window.mark = 1")
        before = shown.text("#pid")
        assert page.locator("#lost").is_hidden()
        first.close()
        shown.wait_link(LOST)
        assert page.locator("#lost").is_visible()
        assert page.locator("#news").text_content() == f"{LOST}."
        assert "stale" in (page.locator("body").get_attribute("class") or "")
        assert shown.text("#pid") == before
        second = stack.enter_context(Proxy(backend, options=options))
        shown.wait_link("Live")
        assert page.locator("#news").text_content() == "Live."
        shown.wait(lambda: shown.text("#pid") == str(second.pid))
        assert page.locator("#lost").is_hidden()
        assert page.evaluate("window.mark") == 1


@pytest.mark.slow
def test_a_page_too_many_waits_for_its_turn(proxy_to, browser: Browser) -> None:
    proxy = proxy_to(answer_all)
    with ExitStack() as stack:
        followers = [stack.enter_context(Follower(proxy)) for _ in range(MOST_STREAMS)]
        shown = Site(browser, proxy)
        stack.callback(shown.page.close)
        shown.open(LOST)
        for follower in followers:
            follower.close()
        shown.wait_link("Live")


def test_a_tab_that_nobody_looks_at_gives_up_its_place(proxy_to, site) -> None:
    proxy = proxy_to(answer_all)
    shown = site(proxy)
    page = shown.page
    page.clock.install()
    shown.open()
    look = "(hidden) => { Object.defineProperty(document, 'hidden', {configurable: true, value: hidden}); "
    look += "document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(look, True)
    page.clock.run_for(59_000)
    assert shown.text("#link") != "Paused"
    page.evaluate(look, False)
    page.evaluate(look, True)
    page.clock.run_for(59_000)
    assert shown.text("#link") != "Paused"
    page.clock.run_for(2_000)
    assert shown.text("#link") == "Paused"

    def has_all_places() -> bool:
        with ExitStack() as stack:
            followers = [stack.enter_context(Follower(proxy)) for _ in range(MOST_STREAMS)]
            return {follower.status for follower in followers} == {200}

    def has_a_place() -> bool:
        with Follower(proxy) as follower:
            return follower.status == 200

    wait_until(has_all_places)
    wait_until(has_a_place)  # those that were tried are given back when the proxy has seen them leave
    page.evaluate(look, False)
    shown.wait_link("Live")


def test_what_strangers_write_is_text(used: Proxy, site) -> None:
    shown = site(used)
    page = shown.open()
    shown.wait(lambda: len(shown.table("#failures")) == 2)
    link = page.locator("#failures a").nth(0)
    assert link.inner_text() == EVIL
    assert link.evaluate("link => new URL(link.href).searchParams.get('id')") == EVIL
    assert link.evaluate("link => new URL(link.href).pathname") == "/exchanges"
    assert page.locator("main img").count() == 0
    assert page.title() == "llmpipe"


# --- For all eyes, hands and screens ---

CONTRAST = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((value) => value / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) { return colour; }
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("template, noscript, script")) { continue; }
    const style = getComputedStyle(node);
    const pair = [light(parse(node.namespaceURI.endsWith("svg") ? style.fill : style.color)), light(behind(node))].sort((a, b) => b - a);
    found.push([(pair[0] + 0.05) / (pair[1] + 0.05), node.textContent]);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_in_both_schemes(used: Proxy, site, scheme: str) -> None:
    shown = site(used, color_scheme=scheme)
    page = shown.open()
    shown.wait(lambda: len(shown.table("#failures")) == 2)
    found = page.evaluate(CONTRAST)
    assert len(found) > 60
    assert [pair for pair in found if pair[0] < 4.5] == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", paper)[:3])) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60


def test_a_narrow_screen_shows_all_of_it(used: Proxy, site) -> None:
    shown = site(used, viewport={"width": 360, "height": 640})
    page = shown.open()
    shown.wait(lambda: len(shown.table("#failures")) == 2)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    # What is wider has a box of its own to scroll in, which the keyboard reaches.
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter((node) => node.checkVisibility() && !node.closest('.scroll, .skip, .unseen') "
        "&& node.getBoundingClientRect().right > 360.5).map((node) => node.outerHTML)"
    )
    assert wide == []
    boxes = page.eval_on_selector_all(
        ".scroll", "boxes => boxes.map(box => [box.scrollWidth > box.clientWidth, box.tabIndex])"
    )
    assert boxes == [[True, 0]] * 2
    widths = page.eval_on_selector_all(".plot svg", "plots => plots.map(plot => plot.getBoundingClientRect().width)")
    assert all(280 < width < 330 for width in widths)


FOCUS = """
() => {
  const node = document.activeElement;
  const style = getComputedStyle(node);
  return [node.localName, node.innerText.split("\\n")[0], style.outlineStyle, parseFloat(style.outlineWidth)];
}
"""


def test_the_keyboard_is_enough(used: Proxy, site) -> None:
    shown = site(used)
    page = shown.open()
    shown.wait(lambda: len(shown.table("#failures")) == 2)
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUS)[:2] == ["a", "Skip to the figures"]
    assert page.locator(".skip").evaluate("node => node.getBoundingClientRect().width") > 100
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        kind, name, outline, width = page.evaluate(FOCUS)
        if kind == "body":
            break
        assert outline != "none", name
        assert width >= 2, name
        seen.append((kind, name))
        if seen[-1] == ("button", "Outcome"):
            break
    assert seen[:3] == [("div", "Backends of the pool default"), ("button", "Backend"), ("button", "State")]
    head = page.locator("#failures th", has_text="Outcome")
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None


def test_rows_are_sorted_by_what_they_mean(proxy_to, site) -> None:
    """Numbers as numbers, states by how bad they are, nothing last, and the order stays while figures come."""
    proxy = proxy_to(answer_all)
    status = status_of(proxy)
    plain = status["pools"][0]["backends"][0]
    values = {"a": (9, 0.5, "up"), "b": (100, None, "drained"), "c": (20, 0.001, "down"), "d": (20, 2.0, "draining")}
    status["pools"][0]["backends"] = [
        {**plain, "name": name, "in_flight": flight, "ttft": {"p50": ttft, "p99": None}, "state": state}
        for name, (flight, ttft, state) in values.items()
    ]
    shown = site(proxy)
    page = shown.page
    events = fake_status(status)
    page.route("**/events", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
    shown.open(LOST)

    def order(column: str) -> str:
        page.get_by_role("button", name=column, exact=True).click()
        return "".join(row[0] for row in shown.table(".pool"))

    assert [order("In flight") for _ in range(3)] == ["bcda", "acdb", "abcd"]
    assert [order("TTFT p50") for _ in range(2)] == ["dacb", "cadb"]
    assert [order("State") for _ in range(2)] == ["cdba", "abdc"]
    assert page.locator("th[aria-sort]").count() == 1


def test_all_that_is_there_has_a_name(used: Proxy, site) -> None:
    shown = site(used)
    page = shown.open()
    shown.wait(lambda: len(shown.table("#failures")) == 2)
    assert page.get_attribute("html", "lang") == "en"
    assert [page.get_by_role(role).count() for role in ("main", "banner", "contentinfo", "navigation", "status")] == [
        1
    ] * 5
    assert page.get_by_role("heading", level=1).all_inner_texts() == ["llmpipe"]
    levels = page.eval_on_selector_all(
        "h1, h2, h3", "nodes => nodes.filter(n => n.checkVisibility()).map(n => Number(n.localName[1]))"
    )
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.get_by_role("table").evaluate_all("tables => tables.map(table => table.caption.textContent)") == [
        "Backends of the pool default",
        "Last exchanges that failed",
    ]
    assert page.locator("th:not([scope])").count() == 0
    for role, least in (("button", 20), ("region", 5), ("img", 6), ("link", 6)):
        nodes = page.get_by_role(role)
        names = nodes.evaluate_all(
            "nodes => nodes.map(n => n.getAttribute('aria-label') || n.textContent.trim() || "
            "document.getElementById(n.getAttribute('aria-labelledby')).textContent)"
        )
        assert len(names) >= least, role
        assert all(names), role
    ids = page.eval_on_selector_all("[id]", "nodes => nodes.map(node => node.id)")
    assert len(ids) == len(set(ids))


def test_numbers_keep_their_places(used: Proxy, site) -> None:
    page = site(used).open()
    for selector in ("table", ".values", "header .facts", ".plot text"):
        style = page.locator(selector).first.evaluate("node => getComputedStyle(node).fontVariantNumeric")
        assert style == "tabular-nums", selector


@pytest.mark.slow
def test_a_plot_tells_what_is_under_the_pointer(used: Proxy, site) -> None:
    shown = site(used)
    page = shown.open()
    shown.wait(lambda: "at least" in (page.locator(".plot svg").nth(3).get_attribute("aria-label") or ""), "a sample")
    page.locator(".plot svg").nth(3).hover()
    words = page.locator(".plot").nth(3).locator(".cursor text")
    assert re.fullmatch(r"\d\d:\d\d:\d\d UTC +p50 \S+ ms +p99 \S+ ms", words.text_content() or "")
    page.mouse.move(0, 0)
    assert words.count() == 0


def test_a_browser_may_do_nothing_that_the_page_does_not_need(proxy: Proxy) -> None:
    answer = httpx.get(f"http://127.0.0.1:{proxy.admin_port}/", timeout=TIMEOUT)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<style|<script>| style=| on\w+=", answer.text)
    for path in re.findall(r'(?:href|src)="((?:base|status)\.\w+)"', answer.text):
        part = httpx.get(f"http://127.0.0.1:{proxy.admin_port}/{path}", timeout=TIMEOUT)
        assert (part.status_code, part.headers["x-content-type-options"]) == (200, "nosniff")
