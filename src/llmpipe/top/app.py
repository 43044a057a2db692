"""The live view. One worker asks, the rest only draws what was answered last: keys work whatever the proxy does."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Key
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Input

from llmpipe.top import figures, summary, tables, timeline
from llmpipe.top.figures import clean
from llmpipe.top.source import MOST_EXCHANGES, Missing, Snapshot, Source, UnreachableError
from llmpipe.top.tables import Row, Span
from llmpipe.top.view import Head, Line, Scrolled, Table

MOST_RETRY = 5.0
"""Seconds between two attempts to reach a proxy that is gone, if the interval is no shorter."""

SECONDS_OF_A_MESSAGE = 15.0

HELP = """\
Tab, Shift-Tab   the next panel, the one before
Up, Down, j, k   select a row (also PgUp, PgDn, Home, End)
Enter            all about the selected backend, exchange or failure
d, r             drain, resume the selected backend, or the one of the selected
                 exchange; asks first
s, S             sort by the next column; turn the order around
/                show what has each word in pool, backend, model, id or state;
                 Enter keeps the filter, Escape ends it
p                pause: nothing is asked until p is pressed again
q, Ctrl-C        quit; q and Escape leave a page such as this one

TTFT50, TTFT99   time to first token, median and 99th percentile of a minute
ITL50, ITL99     time between two tokens, the same
exch/s, err/s    exchanges and failures of a backend per second, over 10 s
flight, content  requests it works on; time since content last came from it
tokens           as the backend counts them; "pcs": pieces of content where it
                 does not; "first": when the first one was forwarded
down             others are asked in its place; "why" says why
draining         gets nothing new and has some in flight; drained: has none left
unresolved       its name has no address
-                unknown, or not measured"""


class Question(ModalScreen[bool]):
    """A line at the bottom that waits for y or n."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Head(id="question")

    def on_mount(self) -> None:
        self.query_one(Head).show([[Span(f"{self._text} ", "odd"), Span("y/n", "strong")]])

    def on_key(self, event: Key) -> None:
        if event.key in ("y", "Y"):
            self.dismiss(True)
        elif event.key in ("n", "N", "escape", "q"):
            self.dismiss(False)
        event.stop()


class Page(Screen[None]):
    """Lines that fill the terminal until q or Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Back"),
        Binding("question_mark", "nothing", show=False),
    ]

    def __init__(self, lines: Sequence[Line], *, live: str = "") -> None:
        """Args:
        lines: to show.
        live: id of the exchange that they are about; empty for what does not change.
        """
        super().__init__()
        self._lines = lines
        self.live = live

    def compose(self) -> ComposeResult:
        yield Head(id="alarm")
        yield Scrolled(id="page")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.show(self._lines)

    def show(self, lines: Sequence[Line]) -> None:
        """Shows other lines."""
        self.query_one(Scrolled).show(lines)

    def alarm(self, text: str) -> None:
        """Says what is wrong, or that nothing is."""
        head = self.query_one("#alarm", Head)
        head.display = bool(text)
        head.show([[Span(text, "bad")]] if text else [])

    def action_nothing(self) -> None:
        """Help has no help."""


class Overview(Screen[None]):
    """The page with all panels."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # With priority the next key is for what these open, however fast it is typed.
        Binding("d", "act('drain')", "Drain", priority=True),
        Binding("r", "act('resume')", "Resume", priority=True),
        Binding("s", "sort", "Sort"),
        Binding("S", "reverse", "Order", key_display="S"),
        Binding("slash", "filter", "Filter", key_display="/", priority=True),
        Binding("tab", "panel(1)", "Panel", key_display="Tab", priority=True),
        Binding("shift+tab", "panel(-1)", show=False, priority=True),
        Binding("p", "app.pause", "Pause"),
        Binding("question_mark", "app.help", "Help", key_display="?"),
        Binding("q", "app.quit", "Quit"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._message = ""
        self._message_until = 0.0
        self._before_filter = Table("Backends", tables.BACKENDS, id="backends")

    def compose(self) -> ComposeResult:
        yield Head(id="head")
        yield self._before_filter
        yield Table("Streams", tables.EXCHANGES, "age", reverse=True, id="streams")
        yield Table("Last failures", tables.FAILURES, id="failures")
        yield Head(id="message")
        yield Input(id="filter", placeholder="pool, backend, model, id, state", compact=True)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.query_one("#filter", Input).cursor_blink = False
        self._before_filter.focus()
        self.tell()

    def show(self, snapshot: Snapshot | None, taken: datetime, state: list[Span], *, stale: bool) -> None:
        """Shows what was answered last.

        Args:
            snapshot: None where nothing was answered yet.
            taken: when it was answered.
            state: what stands at the right of the first line.
            stale: whether it is not what is.
        """
        status = snapshot.status if snapshot else {}
        head = self.query_one("#head", Head)
        width = head.size.width
        first = summary.identity(status, taken) if snapshot else [Span("llmpipe top", "strong")]
        history = snapshot.history if snapshot else Missing("nothing was answered yet")
        figures_ = [summary.load(status), summary.latencies(status), summary.sparklines(history, width)]
        if stale:
            first, *figures_ = ([Span(span.text, "quiet") for span in line] for line in (first, *figures_))
        head.show([beside(first, state, width), *figures_])
        if snapshot is not None:
            self._fill(snapshot)
        for table in self.query(Table):
            table.set_stale(stale)

    def _fill(self, snapshot: Snapshot) -> None:
        self.query_one("#backends", Table).fill(tables.backends(snapshot.status))
        streams = self.query_one("#streams", Table)
        if isinstance(snapshot.exchanges, Missing):
            streams.fill(None, clean(snapshot.exchanges.reason))
        else:
            groups = tables.exchanges(snapshot.exchanges)
            known, of = len(groups[0].rows), figures.number(snapshot.status.get("streams")) or 0
            streams.fill(groups, f"the newest of {of:.0f}" if MOST_EXCHANGES <= known < of else "")
        failed = tables.failures(snapshot.status)
        note = "this proxy does not list them" if failed is None else ""
        self.query_one("#failures", Table).fill(failed, note)

    def tell(self, text: str = "", *, bad: bool = False) -> None:
        """Shows a message for a while; none where it is empty."""
        self._message = text
        self._message_until = time.monotonic() + SECONDS_OF_A_MESSAGE
        message = self.query_one("#message", Head)
        message.display = bool(text)
        message.show([[Span(text, "bad" if bad else "strong")]] if text else [])

    def forget(self) -> None:
        """Takes a message away whose time is over."""
        if self._message and time.monotonic() > self._message_until:
            self.tell()

    @property
    def panel(self) -> Table:
        """The one that has the focus, the backends' where none has it."""
        return self.focused if isinstance(self.focused, Table) else self.query_one("#backends", Table)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's
        """Keys are letters while a filter is typed."""
        return action == "panel" or not isinstance(self.focused, Input)

    def action_panel(self, by: int) -> None:
        if isinstance(self.focused, Input):
            self._end_filter()
            return
        panels = list(self.query(Table))
        self.set_focus(panels[(panels.index(self.panel) + by) % len(panels)])

    def action_sort(self) -> None:
        self.panel.sort_next()

    def action_reverse(self) -> None:
        self.panel.sort_reversed()

    def action_filter(self) -> None:
        self._before_filter = self.panel
        field = self.query_one("#filter", Input)
        field.display = True
        self.set_focus(field)

    def on_input_changed(self, event: Input.Changed) -> None:
        for table in self.query(Table):
            table.set_filter(event.value.strip())

    def on_input_submitted(self, _: Input.Submitted) -> None:
        self._end_filter()

    def on_key(self, event: Key) -> None:
        if event.key == "escape":
            self.query_one("#filter", Input).value = ""
            self._end_filter()
            event.stop()

    def _end_filter(self) -> None:
        field = self.query_one("#filter", Input)
        if field.display:
            field.display = False
            self.set_focus(self._before_filter)

    def action_act(self, verb: str) -> None:
        row = self.panel.selected
        if row is None or not row.backend:
            self.tell("there is no backend to do that to: none is selected", bad=True)
            return
        app = self.app
        assert isinstance(app, Top)
        app.ask_and_act(verb, row.backend)

    def on_table_opened(self, event: Table.Opened) -> None:
        app = self.app
        assert isinstance(app, Top)
        if event.table.id == "backends":
            app.push_screen(Page(timeline.backend(event.row.data)))
        else:
            app.open_exchange(event.row)


class Top(App[None]):
    """`llmpipe top`."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "llmpipe top"
    CSS = """
    Screen { layout: vertical; background: ansi_default; color: ansi_default; }
    #head { height: 4; }
    #backends { height: 4fr; min-height: 4; }
    #streams { height: 3fr; min-height: 3; }
    #failures { height: 2fr; min-height: 3; }
    #message, #alarm { height: 1; display: none; }
    #filter { height: 1; border: none; display: none; padding: 0; background: ansi_default; color: ansi_default; }
    #page { height: 1fr; }
    Question { align: left bottom; background: transparent; }
    #question { height: 1; dock: bottom; background: ansi_default; }
    Footer, FooterKey, FooterKey .footer-key--key, FooterKey .footer-key--description {
        background: ansi_default; color: ansi_default;
    }
    FooterKey .footer-key--key { text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "quit", show=False, priority=True)]

    def __init__(self, source: Source, interval: float) -> None:
        """Args:
        source: what is asked.
        interval: seconds between two questions.
        """
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self._source = source
        self._interval = interval
        self._snapshot: Snapshot | None = None
        self._taken = datetime.now(timezone.utc)
        self._lost = ""
        self._paused = False
        self._again = asyncio.Event()
        self._overview = Overview()

    def on_mount(self) -> None:
        self.theme = "ansi-dark" if "ansi-dark" in self.available_themes else "textual-ansi"
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal is put back as it was
            loop.add_signal_handler(number, self.exit, None, 128 + number)
        self.push_screen(self._overview)
        self.run_worker(self._poll(), exclusive=True)

    async def _poll(self) -> None:
        while True:
            began = time.monotonic()
            self._again.clear()
            if not self._paused:
                await self._look()
            self._overview.forget()
            interval = min(self._interval, MOST_RETRY) if self._lost else self._interval
            try:
                await asyncio.wait_for(self._again.wait(), max(0.05, interval - (time.monotonic() - began)))
            except asyncio.TimeoutError:
                continue

    async def _look(self) -> None:
        try:
            self._snapshot = await self._source.snapshot()
            self._taken = datetime.now(timezone.utc)
            self._lost = ""
        except UnreachableError as error:
            if not self._lost:
                self._lost = time.strftime("%H:%M:%S")
            self._lost = f"{self._lost[:8]}: {clean(str(error))}"
        self.redraw()
        if isinstance(self.screen, Page) and self.screen.is_mounted:  # it may have been opened this moment
            self.screen.alarm(f"connection lost at {self._lost}" if self._lost else "")
            if self.screen.live and not self._lost:
                await self._look_at(self.screen)

    async def _look_at(self, page: Page) -> None:
        answered = await self._source.exchange(page.live)
        if page.is_attached and page.is_mounted:
            page.show(timeline.found(page.live, answered))

    def redraw(self) -> None:
        """Shows what was answered last."""
        if self._lost:
            since = "CONNECTION LOST at" if self._snapshot else "NO CONNECTION since"
            state = [Span(f"{since} {self._lost}, retrying", "bad")]
        elif self._snapshot is None:
            state = [Span(f"asking {self._source.address}")]
        elif self._paused:
            state = [Span("PAUSED", "odd")]
        else:
            state = [Span(str(self._source.address), "quiet")]
        if self._overview.is_mounted:
            self._overview.show(self._snapshot, self._taken, state, stale=bool(self._lost))

    def on_resize(self) -> None:
        self.call_after_refresh(self.redraw)

    def action_pause(self) -> None:
        self._paused = not self._paused
        self._again.set()
        self.redraw()

    def action_help(self) -> None:
        self.push_screen(Page([[Span(line)] for line in HELP.splitlines()]))

    def open_exchange(self, row: Row) -> None:
        """Opens the page of an exchange, and keeps it up to date."""
        identity = tables.request_id(row.data)
        if not identity:
            self._overview.tell("this exchange has no id", bad=True)
            return
        self.push_screen(Page([[Span(f"asking for {clean(identity)}", "quiet")]], live=identity))
        self._paused = False
        self._again.set()

    def ask_and_act(self, verb: str, backend: str) -> None:
        """Drains or resumes a backend, if that is what is wanted."""

        def decided(yes: bool | None) -> None:
            if yes:
                self._overview.tell(f"{verb} {clean(backend)} ...")
                self.run_worker(self._act(verb, backend))

        self.push_screen(Question(f"{verb} {clean(backend)}?"), decided)

    async def _act(self, verb: str, backend: str) -> None:
        try:
            done = await self._source.act(verb, backend)
            self._overview.tell(f"{verb} {clean(backend)}: {clean(done)}")
        except UnreachableError as error:
            self._overview.tell(f"{verb} {clean(backend)} failed: {clean(str(error))}", bad=True)
        self._again.set()


def beside(left: list[Span], right: list[Span], width: int) -> list[Span]:
    """Two pieces at the ends of a line. What is at the left is cut where there is no room for both."""
    room = width - sum(figures.cells(span.text) for span in right) - 2
    kept: list[Span] = []
    for span in left:
        text = figures.cut(span.text, max(room, 0))
        kept.append(Span(text, span.mood))
        room -= figures.cells(text)
    return [*kept, Span(" " * max(room + 2, 2)), *right]
