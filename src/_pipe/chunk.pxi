# chunk: the chunked framing, followed byte by byte so that its end is known (RFC 9112 section 7.1; rules A4 and C2).
#
# It checks and measures; it never changes or copies. Bytes may be forwarded up to what it has consumed and no further.

cdef enum:
    CHUNK_SIZE = 0          # first digit of a size
    CHUNK_SIZE_MORE = 1     # further digits, or what follows them
    CHUNK_SIZE_LF = 2
    CHUNK_DATA = 3
    CHUNK_DATA_CR = 4
    CHUNK_DATA_LF = 5
    CHUNK_TRAILER = 6       # start of a trailer line, or of the empty line
    CHUNK_TRAILER_NAME = 7
    CHUNK_TRAILER_VALUE = 8
    CHUNK_TRAILER_LF = 9
    CHUNK_LAST_LF = 10
    CHUNK_END = 11
    CHUNK_EXTENSION = 12            # behind a ";": the first character of a name
    CHUNK_EXTENSION_NAME = 13
    CHUNK_EXTENSION_IS = 14         # behind the "=": the first character of a value
    CHUNK_EXTENSION_TOKEN = 15
    CHUNK_EXTENSION_QUOTED = 16
    CHUNK_EXTENSION_ESCAPED = 17    # behind a backslash
    CHUNK_EXTENSION_UNQUOTED = 18   # behind the closing quote

cdef enum:
    CHUNK_MAX_DIGITS = 16
    CHUNK_MAX_EXTENSION = 256       # bytes a chunk
    CHUNK_MAX_TRAILER = 8192        # bytes in all
    CHUNK_NAME_ROOM = 20            # the longest trailer name that matters, and one more

cdef struct ChunkC:
    uint64_t left                   # bytes of the chunk's data still to come
    uint16_t extension              # bytes of its extension so far
    uint16_t trailer                # bytes of all trailers so far
    uint8_t state
    uint8_t digits
    uint8_t name_length             # of the trailer's name, so far, at most CHUNK_NAME_ROOM
    uint8_t name[CHUNK_NAME_ROOM]

cdef bint chunk_trailer_allowed(ChunkC *chunk) noexcept nogil:
    # Framing, routing and connection fields are not allowed in trailers (RFC 9110 section 6.5.1).
    cdef uint8_t kind
    if chunk.name_length == CHUNK_NAME_ROOM:
        return True         # longer than any of them
    if text_same(chunk.name, chunk.name_length, b"trailer"):
        return False
    kind = field_kind(chunk.name, chunk.name_length)
    return kind == FIELD_OTHER or kind == FIELD_REQUEST_ID or kind == FIELD_VIA or kind == FIELD_TRACEPARENT

cdef uint8_t chunk_fault(ChunkC *chunk) noexcept nogil:
    # Why chunk_next refused what it met: REASON_*.
    if chunk.state >= CHUNK_EXTENSION:
        return REASON_CHUNK_EXTENSION
    if chunk.state == CHUNK_DATA_CR or chunk.state == CHUNK_DATA_LF:
        return REASON_CHUNK_END
    return REASON_TRAILER if chunk.state >= CHUNK_TRAILER else REASON_CHUNK_SIZE

# The next state of an extension, which `c` belongs to; CHUNK_END where it breaks the grammar: *( ";" token [ "=" ( token /
# quoted-string ) ] ) (RFC 9112 section 7.1.1). The white space that the RFC has readers tolerate there (BWS) is refused:
# senders may not make it, and a reader that does not know it ends the size elsewhere.
cdef uint8_t chunk_extension_next(uint8_t state, uint8_t c) noexcept nogil:
    cdef bint token = text_class[c] & TEXT_TOKEN
    if state == CHUNK_EXTENSION:
        return CHUNK_EXTENSION_NAME if token else CHUNK_END
    if state == CHUNK_EXTENSION_IS:
        return CHUNK_EXTENSION_TOKEN if token else CHUNK_EXTENSION_QUOTED if c == c'"' else CHUNK_END
    if state == CHUNK_EXTENSION_ESCAPED:
        return CHUNK_EXTENSION_QUOTED if text_class[c] & TEXT_VALUE else CHUNK_END
    if state == CHUNK_EXTENSION_QUOTED:
        if c == c'"':
            return CHUNK_EXTENSION_UNQUOTED
        if c == c"\\":
            return CHUNK_EXTENSION_ESCAPED
        return CHUNK_EXTENSION_QUOTED if text_class[c] & TEXT_VALUE else CHUNK_END
    # Here a name or a value may end.
    if c == c"\r":
        return CHUNK_SIZE_LF
    if c == c";":
        return CHUNK_EXTENSION
    if state == CHUNK_EXTENSION_NAME:
        return CHUNK_EXTENSION_NAME if token else CHUNK_EXTENSION_IS if c == c"=" else CHUNK_END
    return CHUNK_EXTENSION_TOKEN if token and state == CHUNK_EXTENSION_TOKEN else CHUNK_END

# The line ends and the size between two pieces of data where they are all there and plain, in one go: an unpaced stream is
# many small chunks, and a turn of the loop below for each of their bytes cost 5 % of its throughput. Whatever is not plain is
# left to that loop. Returns how far it came.
cdef size_t chunk_next_size(ChunkC *chunk, const uint8_t *data, size_t n, size_t i) noexcept nogil:
    cdef size_t start
    cdef uint64_t size = 0
    if chunk.state == CHUNK_DATA_CR:
        if n - i < 2 or data[i] != c"\r" or data[i + 1] != c"\n":
            return i
        i += 2
        chunk.state = CHUNK_SIZE
    start = i
    while i < n and i - start < 8 and text_class[data[i]] & TEXT_HEX:
        size = size << 4 | text_hex[data[i]]
        i += 1
    if not size or n - i < 2 or data[i] != c"\r" or data[i + 1] != c"\n":
        return start
    chunk.left = size
    chunk.state = CHUNK_DATA
    return i + 2

# Follows data[consumed[0]:n] to the end of the next piece of chunk data, or of the bytes.
# RC_OK: *body and *length are a piece of data, call again. RC_AGAIN: every byte was consumed. RC_DONE: the message
# ended at *consumed. RC_BAD: what stands at *consumed breaks the framing.
cdef int chunk_next(ChunkC *chunk, const uint8_t *data, size_t n, size_t *consumed, const uint8_t **body,
                    size_t *length) noexcept nogil:
    cdef size_t i = consumed[0]
    cdef uint8_t c
    cdef uint8_t state
    while i < n:
        if chunk.state == CHUNK_DATA_CR or chunk.state == CHUNK_SIZE:
            i = chunk_next_size(chunk, data, n, i)
            if i == n:
                break
        c = data[i]
        if chunk.state == CHUNK_DATA:
            body[0] = data + i
            length[0] = n - i
            if length[0] >= chunk.left:
                length[0] = <size_t>chunk.left
                chunk.state = CHUNK_DATA_CR
            chunk.left -= length[0]
            consumed[0] = i + length[0]
            return RC_OK
        elif chunk.state == CHUNK_SIZE:
            if not text_class[c] & TEXT_HEX:
                break
            chunk.left = text_hex[c]
            chunk.digits = 1
            chunk.extension = 0
            chunk.state = CHUNK_SIZE_MORE
        elif chunk.state == CHUNK_SIZE_MORE:
            if text_class[c] & TEXT_HEX:
                # A size of 2^63 or more is a negative one to whoever counts in signed numbers.
                if chunk.digits == CHUNK_MAX_DIGITS or chunk.left >> 59:
                    break
                chunk.digits += 1
                chunk.left = chunk.left << 4 | text_hex[c]
            elif c == c"\r":
                chunk.state = CHUNK_SIZE_LF
            elif c == c";":
                chunk.state = CHUNK_EXTENSION
            else:
                break
        elif chunk.state == CHUNK_SIZE_LF:
            if c != c"\n":
                break
            chunk.state = CHUNK_DATA if chunk.left else CHUNK_TRAILER
        elif chunk.state == CHUNK_DATA_CR:
            if c != c"\r":
                break
            chunk.state = CHUNK_DATA_LF
        elif chunk.state == CHUNK_DATA_LF:
            if c != c"\n":
                break
            chunk.state = CHUNK_SIZE
        elif chunk.state == CHUNK_LAST_LF:
            if c != c"\n":
                break
            chunk.state = CHUNK_END
            consumed[0] = i + 1
            return RC_DONE
        elif chunk.state >= CHUNK_EXTENSION:
            state = chunk_extension_next(chunk.state, c)
            chunk.extension += state != CHUNK_SIZE_LF
            if state == CHUNK_END or chunk.extension > CHUNK_MAX_EXTENSION:
                break
            chunk.state = state
        else:
            chunk.trailer += 1
            if chunk.trailer > CHUNK_MAX_TRAILER:
                break
            if chunk.state == CHUNK_TRAILER and c == c"\r":
                chunk.state = CHUNK_LAST_LF
            elif chunk.state == CHUNK_TRAILER or chunk.state == CHUNK_TRAILER_NAME:
                if chunk.state == CHUNK_TRAILER:
                    chunk.name_length = 0
                    chunk.state = CHUNK_TRAILER_NAME
                if text_class[c] & TEXT_TOKEN:
                    if chunk.name_length < CHUNK_NAME_ROOM:
                        chunk.name[chunk.name_length] = c
                        chunk.name_length += 1
                elif c == c":" and chunk.name_length and chunk_trailer_allowed(chunk):
                    chunk.state = CHUNK_TRAILER_VALUE
                else:
                    break
            elif chunk.state == CHUNK_TRAILER_VALUE:
                if c == c"\r":
                    chunk.state = CHUNK_TRAILER_LF
                elif not text_class[c] & TEXT_VALUE:
                    break
            elif chunk.state == CHUNK_TRAILER_LF:
                if c != c"\n":
                    break
                chunk.state = CHUNK_TRAILER
        i += 1
    consumed[0] = i
    return RC_AGAIN if i == n else RC_BAD
