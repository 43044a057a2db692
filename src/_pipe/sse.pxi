# sse: whether bytes of an event stream carry content, and whether they end between two events.
#
# The text is never changed, held or understood further than that: a comment (": ping") must not keep a stalled stream
# alive, and an error event may only be written where an event could start (WHATWG HTML, section 9.2.6).

cdef enum:
    SSE_EVENT_START = 0     # at the start of a line, no line of an event before it
    SSE_LINE_START = 1      # at the start of a line, inside an event
    SSE_FIELD = 2           # inside a line
    SSE_COMMENT = 3         # inside a comment
    SSE_COMMENT_INSIDE = 4  # inside a comment between the lines of an event

# Follows p[0:n] from `state[0]`. Whether something else than comments and blank lines was in it. Lines end with LF or
# CRLF; in a stream whose lines end with a CR alone, which nobody writes, comments count as content.
cdef inline bint sse_follow(uint8_t *state, const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef const uint8_t *line_end
    cdef bint content = False
    if (n > 2 and (end - 1)[0] == c"\n" and (end - 2)[0] == c"\n" and p[0] != c":" and p[0] != c"\n" and p[0] != c"\r"
            and state[0] <= SSE_FIELD):
        # Whole events, as nearly every piece is: it begins with content, and a blank line ends whatever stands before it.
        state[0] = SSE_EVENT_START
        return True
    while p < end:
        if state[0] == SSE_EVENT_START or state[0] == SSE_LINE_START:
            if p[0] == c"\n" or p[0] == c"\r":
                # An empty line. A CR ends it already; the LF that may follow is one more.
                state[0] = SSE_EVENT_START
                p += 1
                continue
            if p[0] == c":":
                state[0] = SSE_COMMENT if state[0] == SSE_EVENT_START else SSE_COMMENT_INSIDE
            else:
                state[0] = SSE_FIELD
                content = True
        elif state[0] == SSE_FIELD:
            content = True
        line_end = <const uint8_t *>memchr(p, c"\n", end - p)
        if line_end is NULL:
            break
        state[0] = SSE_EVENT_START if state[0] == SSE_COMMENT else SSE_LINE_START
        p = line_end + 1
    return content

# What an event stream begins with (rule N1).
cdef enum:
    BEGIN_MORE = 0      # not known yet
    BEGIN_EVENT = 1
    BEGIN_ERROR = 2     # an event that says that the request failed
    BEGIN_NONE = 3      # no event: it has ended

cdef const uint8_t *blank_skip(const uint8_t *p, const uint8_t *end) noexcept nogil:
    while p < end and (p[0] == c" " or p[0] == c"\t"):
        p += 1
    return p

cdef int data_begin(const uint8_t *p, const uint8_t *end, bint whole) noexcept nogil:
    # One of BEGIN_*, of the data of an event, or of what there is of it: an error is a JSON object whose first name is "error".
    cdef const char *name = b'"error"'
    cdef size_t n
    p = blank_skip(p, end)
    if p < end and p[0] != JSON_OPEN:
        return BEGIN_EVENT
    p = blank_skip(p + (p < end), end)
    n = end - p if end - p < 7 else 7
    if memcmp(p, name, n) != 0:
        return BEGIN_EVENT
    return BEGIN_ERROR if n == 7 else BEGIN_EVENT if whole else BEGIN_MORE

cdef int sse_begin(const uint8_t *p, size_t n) noexcept nogil:
    # What the first event of a stream is, of which p[0:n] is the beginning: one of BEGIN_*. Comments are none.
    cdef const uint8_t *end = p + n
    cdef const uint8_t *line_end
    cdef bint whole
    while p < end:
        line_end = <const uint8_t *>memchr(p, c"\n", end - p)
        whole = line_end is not NULL
        if not whole:
            line_end = end
        elif line_end > p and (line_end - 1)[0] == c"\r":
            line_end -= 1
        n = line_end - p
        if n >= 5 and memcmp(p, <const char *>b"data:", 5) == 0:
            return data_begin(p + 5, line_end, whole)
        if not whole:
            return BEGIN_MORE
        if n >= 6 and memcmp(p, <const char *>b"event:", 6) == 0:
            p = blank_skip(p + 6, line_end)
            n = line_end - p
            if (n == 5 and memcmp(p, <const char *>b"error", 5) == 0) or (
                    n == 15 and memcmp(p, <const char *>b"response.failed", 15) == 0):
                return BEGIN_ERROR
        p = line_end + 1 + (line_end[0] == c"\r")
    return BEGIN_MORE
