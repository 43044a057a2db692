# sieve: takes the event with the usage out of an event stream, where its client has not asked for that and the proxy has (rule Q2).
#
# An event is of no use to a client before its blank line, so an event that comes in parts is held until it is whole, and nothing is
# late. One that is longer than the usage can be goes on as it comes, and so does a comment before an event: it keeps a connection.

cdef enum:
    SIEVE_ROOM = 4096

cdef struct SieveC:
    uint32_t held               # bytes of an event whose end has not come
    uint8_t fresh               # there is content in what is held
    uint8_t passes              # the event is too long to be the one
    uint8_t in_line             # the line that is read has something in it
    uint8_t data[SIEVE_ROOM]

cdef size_t sieve_event_end(SieveC *sieve, const uint8_t *p, size_t n) noexcept nogil:
    # Where the event ends that goes on at p, its blank line included, or the comment; 0 where that is not in p[0:n].
    cdef const uint8_t *line_end
    cdef size_t at = 0
    cdef size_t length
    cdef bint blank
    cdef bint comment = not sieve.passes and (sieve.data[0] if sieve.held else p[0]) == c":"
    while at < n:
        line_end = <const uint8_t *>memchr(p + at, c"\n", n - at)
        length = n - at if line_end is NULL else line_end - (p + at)
        blank = not sieve.in_line and (length == 0 or (length == 1 and p[at] == c"\r"))
        sieve.in_line = not blank and line_end is NULL
        if line_end is NULL:
            return 0
        at += length + 1
        if blank or comment:
            return at
    return 0

cdef const uint8_t *event_member(const uint8_t *p, size_t n, const char *name) noexcept nogil:
    # The first byte of a member's value; NULL where there is no such member. Its name has its quotes, which no text within a string
    # has without a backslash; a string that is the same as the name has no colon behind it.
    cdef const uint8_t *end = p + n
    cdef const uint8_t *at = p
    while True:
        at = <const uint8_t *>memmem(at, end - at, name, strlen(name))
        if at is NULL:
            return NULL
        at = blank_skip(at + strlen(name), end)
        if at < end and at[0] == c":":
            at = blank_skip(at + 1, end)
            if at == end:
                return NULL
            return at

cdef bint event_is_usage(const uint8_t *p, size_t n) noexcept nogil:
    # Whether an event has the usage and no choice: the one that `stream_options` adds.
    cdef const uint8_t *at
    if find_apart(p, p + n) is NULL:
        return False
    at = event_member(p, n, b'"usage"')
    if at is NULL or at[0] != JSON_OPEN:
        return False
    at = event_member(p, n, b'"choices"')
    if at is NULL or at[0] != c"[":
        return False
    at = blank_skip(at + 1, p + n)
    return at < p + n and at[0] == c"]"

cdef size_t sieve_take(SieveC *sieve, const uint8_t *p, size_t n, uint8_t *to, size_t *dropped) noexcept nogil:
    # Takes the next piece of the body; puts what goes on at `to`, and says how much. `to` may lie in the same buffer, not behind p,
    # where nothing was held before that buffer. What is taken out adds to `dropped`.
    cdef size_t out = 0
    cdef size_t end
    cdef size_t part
    while n:
        end = sieve_event_end(sieve, p, n)
        part = end if end else n
        if not sieve.passes and sieve.held + part > SIEVE_ROOM:
            memmove(to + out, sieve.data, sieve.held)
            out += sieve.held
            sieve.held = 0
            sieve.passes = True
        if not sieve.passes and (sieve.held or not end):
            memcpy(sieve.data + sieve.held, p, part)
            sieve.held += <uint32_t>part
            if end:
                if event_is_usage(sieve.data, sieve.held):
                    dropped[0] += sieve.held
                else:
                    memmove(to + out, sieve.data, sieve.held)
                    out += sieve.held
                sieve.held = 0
        elif not sieve.passes and event_is_usage(p, part):
            dropped[0] += part
        else:
            memmove(to + out, p, part)
            out += part
        if end:
            sieve.passes = False
        p += part
        n -= part
    return out
