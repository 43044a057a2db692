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

cdef const uint8_t *white_skip(const uint8_t *p, const uint8_t *end) noexcept nogil:
    while p < end and (p[0] == c" " or p[0] == c"\t" or p[0] == c"\n" or p[0] == c"\r"):
        p += 1
    return p

cdef const uint8_t *string_skip(const uint8_t *p, const uint8_t *end) noexcept nogil:
    # Behind the quote that ends a string, of which p is the first byte; `end` where it does not end.
    while p < end and p[0] != c'"':
        p += 2 if p[0] == c"\\" else 1
    return p + 1 if p < end else end

cdef bint event_is_usage(const uint8_t *p, size_t n) noexcept nogil:
    # Whether an event is the one that `stream_options` adds: a line of data that is an object with a usage, no choice and no error.
    cdef const uint8_t *end = p + n
    cdef const uint8_t *line_end
    cdef const uint8_t *name
    cdef const uint8_t *name_end
    cdef bint usage = False
    cdef bint choices = False
    cdef int depth = 0
    if n < 5 or memcmp(p, <const char *>b"data:", 5) != 0 or find_apart(p, end) is NULL:
        return False
    line_end = <const uint8_t *>memchr(p, c"\n", n)
    if line_end is NULL or white_skip(line_end, end) != end:
        return False            # there are other lines
    p = blank_skip(p + 5, end)
    end = line_end
    if p == end or p[0] != JSON_OPEN:
        return False
    while p < end:
        if p[0] == JSON_OPEN or p[0] == c"[":
            depth += 1
        elif p[0] == JSON_CLOSE or p[0] == c"]":
            depth -= 1
        elif p[0] == c'"':
            name = p
            name_end = string_skip(p + 1, end)
            p = white_skip(name_end, end)
            if depth != 1 or p == end or p[0] != c":":
                continue        # a text, or a name further inside
            p = white_skip(p + 1, end)
            if p == end:
                return False
            if name_end - name == 7 and memcmp(name, <const char *>b'"usage"', 7) == 0:
                usage = p[0] == JSON_OPEN
            elif name_end - name == 9 and memcmp(name, <const char *>b'"choices"', 9) == 0:
                if p[0] != c"[" or white_skip(p + 1, end) == end or white_skip(p + 1, end)[0] != c"]":
                    return False
                choices = True
            elif name_end - name == 7 and memcmp(name, <const char *>b'"error"', 7) == 0 and p[0] != c"n":
                return False
            continue
        p += 1
    return usage and choices and depth == 0

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
