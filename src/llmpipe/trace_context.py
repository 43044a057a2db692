"""The field `traceparent` of a request, as W3C Trace Context has it: version-traceid-parentid-flags.

The engine forwards the field as it came, whatever it says. Here it is read for what we show ourselves, and what is not valid to
the letter is not shown.
"""

import re
from typing import NamedTuple

_FIELD = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


class TraceParent(NamedTuple):
    """What a client's own span says of itself.

    Attributes:
        trace_id: of the trace, 32 hex digits.
        parent_id: of the client's span, 16 hex digits.
        flags: a byte; its lowest bit says that the client's span is sampled.
    """

    trace_id: str
    parent_id: str
    flags: int


def parse(field: bytes) -> TraceParent | None:
    """The parts of the field; None where it is not valid. Of a later version only what it must have in common is read."""
    match = _FIELD.fullmatch(field)
    if match is None:
        return None
    version, trace_id, parent_id, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest) or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return TraceParent(trace_id.decode(), parent_id.decode(), int(flags, 16))
