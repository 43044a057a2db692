"""What the live view is drawn with. A line is drawn anew only where it has changed, so that little is written over a slow connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Blur, Focus, Resize
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from llmpipe.top import figures, tables
from llmpipe.top.tables import Column, Group, Row, Span

# The terminal's own colours, and no yellow or white: each can be read on a dark and on a light background.
STYLES = {
    "": Style(),
    "good": Style(color="green"),
    "bad": Style(color="red", bold=True),
    "odd": Style(color="magenta", bold=True),
    "quiet": Style(dim=True),
    "strong": Style(bold=True),
}
CURSOR = Style(reverse=True)
STALE = Style(dim=True)

Line = Sequence[Span]


class Lines(Widget):
    """Lines of spans, cut at the right."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.lines: list[tuple[tuple[str, Style], ...]] = []
        self._stale = False

    def on_resize(self, _: Resize) -> None:
        self.draw()

    def set_stale(self, stale: bool) -> None:
        """Whether what is shown is not what is."""
        if stale != self._stale:
            self._stale = stale
            self.draw()

    def content(self) -> Iterable[tuple[Line, Style]]:
        """The lines as they should be now, each with a style for all of it."""
        raise NotImplementedError

    def draw(self) -> None:
        """Shows what has changed."""
        lines = [self._styled(line, style) for line, style in self.content()][: self.size.height]
        before, self.lines = self.lines, lines
        if len(before) != len(lines):
            self.refresh()
            return
        changed = [
            Region(start, y, end - start, 1)
            for y, (old, new) in enumerate(zip(before, lines, strict=True))
            for start, end in (_difference(old, new, self.size.width),)
            if end > start
        ]
        if changed:
            self.refresh(*changed)

    def _styled(self, line: Line, over: Style) -> tuple[tuple[str, Style], ...]:
        if self._stale:
            over += STALE
        return tuple((span.text, STYLES[span.mood] + over) for span in line if span.text)

    def render_line(self, y: int) -> Strip:
        if y >= len(self.lines):
            return Strip.blank(self.size.width)
        strip = Strip([Segment(text, style) for text, style in self.lines[y]])
        return strip.adjust_cell_length(self.size.width)


def _difference(old: Sequence[tuple[str, Style]], new: Sequence[tuple[str, Style]], width: int) -> tuple[int, int]:
    """First column in which two lines differ, and the one behind the last; (0, 0) where they do not."""
    if old == new:
        return 0, 0
    before, after = _columns(old, width), _columns(new, width)
    differing = [column for column in range(width) if before[column] != after[column]]
    return (differing[0], differing[-1] + 1) if differing else (0, 0)


def _columns(line: Sequence[tuple[str, Style]], width: int) -> list[tuple[str, Style | None]]:
    """What stands in each column; a wide character in two."""
    columns: list[tuple[str, Style | None]] = []
    for text, style in line:
        for character in text:
            columns += [(character, style)] * figures.cells(character)
    return (columns + [(" ", None)] * width)[:width]


class Head(Lines):
    """Lines that somebody sets."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._content: Sequence[Line] = ()

    def content(self) -> Iterable[tuple[Line, Style]]:
        return ((line, STYLES[""]) for line in self._content)

    def show(self, content: Sequence[Line]) -> None:
        """Shows these lines."""
        self._content = content
        self.draw()


class Scrolled(Head, can_focus=True):
    """Lines that can be scrolled by keys, cut at the right."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_by(-1)", show=False),
        Binding("down,j", "scroll_by(1)", show=False),
        Binding("pageup", "scroll_by(-10)", show=False),
        Binding("pagedown,space", "scroll_by(10)", show=False),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._top = 0

    def content(self) -> Iterable[tuple[Line, Style]]:
        height = self.size.height
        self._top = max(0, min(self._top, len(self._content) - height))
        shown = list(self._content[self._top : self._top + height])
        left = len(self._content) - self._top - height
        if left > 0:
            shown[-1:] = [[Span(f"▼ {left + 1} more lines", "quiet")]]
        return ((line, STYLES[""]) for line in shown)

    def action_scroll_by(self, lines: int) -> None:
        self._top += lines
        self.draw()


class Table(Lines, can_focus=True):
    """A panel: its title, titles of columns, and rows in groups, one of which is selected."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "move(-10)", show=False),
        Binding("pagedown", "move(10)", show=False),
        Binding("home", "move(-1000000)", show=False),
        Binding("end", "move(1000000)", show=False),
        Binding("enter", "open", "Open"),
    ]

    class Opened(Message):
        """Enter on a row."""

        def __init__(self, table: Table, row: Row) -> None:
            super().__init__()
            self.table = table
            self.row = row

    def __init__(
        self, title: str, columns: Sequence[Column], sorted_by: str = "", *, reverse: bool = False, id: str
    ) -> None:
        """Args:
        title: of the panel.
        columns: that there are.
        sorted_by: name of a column, empty for the order in which the rows are.
        reverse: whether the greatest comes first.
        id: of the widget.
        """
        super().__init__(id=id)
        self._title = title
        self._columns = columns
        self.sorted_by = sorted_by
        self.reverse = reverse
        self._groups: list[Group] = []
        self._known = True
        self._filter = ""
        self._note = ""
        self._selected = ""
        self._top = 0

    def fill(self, groups: Sequence[Group] | None, note: str = "") -> None:
        """Shows these rows, None for rows that nobody knows, and a note behind the title."""
        self._known = groups is not None
        self._groups = list(groups or ())
        self._note = note
        self.draw()

    def set_filter(self, text: str) -> None:
        """Shows only rows that have each of these words."""
        self._filter = text
        self.draw()

    def sort_next(self) -> None:
        """Sorts by the next column of those that are shown, and after the last one not at all."""
        names = ["", *(placed.column.name for placed in self._placed())]
        at = names.index(self.sorted_by) if self.sorted_by in names else 0
        self.sorted_by = names[(at + 1) % len(names)]
        self.draw()

    def sort_reversed(self) -> None:
        """Turns the order around."""
        self.reverse = not self.reverse
        self.draw()

    @property
    def selected(self) -> Row | None:
        """The selected row; the first where none was chosen or that one is gone."""
        rows = [row for group in self._shown() for row in group.rows]
        return next((row for row in rows if row.key == self._selected), rows[0] if rows else None)

    def _shown(self) -> list[Group]:
        return tables.ordered(tables.filtered(self._groups, self._filter), self.sorted_by, reverse=self.reverse)

    def _placed(self) -> list[tables.Placed]:
        return tables.layout(self._columns, self._shown(), self.size.width)

    def _title_line(self, groups: Sequence[Group], width: int) -> Line:
        total = sum(len(group.rows) for group in self._groups)
        shown = sum(len(group.rows) for group in groups)
        amount = "-" if not self._known else str(total) if shown == total else f"{shown} of {total}"
        text = f"{'▶' if self.has_focus else '─'} {self._title} {amount}"
        column = next((column.title for column in self._columns if column.name == self.sorted_by), "")
        if column or self.reverse:
            text += f" ─ by {column or 'their order'} {'▼' if self.reverse else '▲'}"
        if self._filter:
            text += f" ─ filter: {self._filter}"
        if self._note:
            text += f" ─ {self._note}"
        text = figures.cut(f"{text} ", width)
        rest = "─" * (width - figures.cells(text))
        return [Span(text, "strong" if self.has_focus else ""), Span(rest, "quiet")]

    def content(self) -> Iterable[tuple[Line, Style]]:
        groups = self._shown()
        placed = tables.layout(self._columns, groups, self.size.width)
        yield self._title_line(groups, self.size.width), STYLES[""]
        yield tables.title_spans(placed, self.sorted_by, reverse=self.reverse), STYLES[""]
        body: list[tuple[Line, Row | None]] = []
        for group in groups:
            if group.spans:
                body.append((group.spans, None))
            body += [(tables.row_spans(row, placed), row) for row in group.rows]
        selected = self.selected
        at = next((index for index, (_, row) in enumerate(body) if row is not None and row is selected), 0)
        if at == 1:
            at = 0  # the first row has the line of its group above it
            self._top = 0
        height = max(self.size.height - 2, 1)
        self._top = max(0, min(max(self._top, at - height + 1), at, len(body) - height))
        for line, row in body[self._top : self._top + height]:
            is_cursor = self.has_focus and row is not None and row is selected
            yield (_filled(line, self.size.width), CURSOR) if is_cursor else (line, STYLES[""])

    def action_move(self, by: int) -> None:
        rows = [row for group in self._shown() for row in group.rows]
        if rows:
            at = next((index for index, row in enumerate(rows) if row.key == self._selected), 0)
            self._selected = rows[max(0, min(at + by, len(rows) - 1))].key
            self.draw()

    def action_open(self) -> None:
        if row := self.selected:
            self.post_message(self.Opened(self, row))

    def on_focus(self, _: Focus) -> None:
        self.draw()

    def on_blur(self, _: Blur) -> None:
        self.draw()


def _filled(line: Line, width: int) -> Line:
    """The same without its colours, which would be bars when they are reversed, and as wide as the terminal."""
    text = "".join(span.text for span in line)
    return [Span(figures.pad(text, width))]
