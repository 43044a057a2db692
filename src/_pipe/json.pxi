# json: finds the `model` of a request's JSON object in the pieces in which it comes, without a tree (RFC 8259).
#
# What is read here must be what the backend reads, whatever its reader is. So a body is refused in which two readers could find two
# models: not well-formed, with two such names, or with one that differs from "model" in its case only (Go's reader, and so Ollama,
# does not tell them apart). Numbers and literals are only told from what they are not: they hold no name.

cdef enum:
    JSON_DEPTH = 1024           # readers give up at depths from 200 (jiter) to 1,024 (orjson)
    JSON_WORDS = 16             # JSON_DEPTH / 64
    MODEL_ROOM = 256            # no model has a longer name
    KEY_ROOM = 15               # one more than "stream_options"
    JSON_OPEN = 0x7B            # the braces; as character literals they would confuse Cython's indentation of C
    JSON_CLOSE = 0x7D

# What comes next.
cdef enum:
    JSON_BEGIN = 0              # the object
    JSON_KEY_OR_END = 1
    JSON_KEY = 2
    JSON_COLON = 3
    JSON_VALUE = 4
    JSON_VALUE_OR_END = 5
    JSON_COMMA_OR_END = 6
    JSON_SCALAR = 7             # the rest of a number, of true, false or null
    JSON_STRING = 8             # the rest of a string
    JSON_TEXT = 9               # the rest of a string that is kept: a key of the object itself, or the model
    JSON_ESCAPE = 10            # in such a string, what stands behind a backslash
    JSON_UNICODE = 11           # the same, behind \u
    JSON_END = 12               # white space behind the object
    JSON_OTHER = 13             # it is something else than an object, which it need not be

cdef struct JsonC:
    uint8_t state               # JSON_*
    uint8_t behind              # a string's end brings it there
    uint8_t guessed             # nobody said that it is JSON
    uint8_t escaped             # in a string that is not kept: the next byte is
    uint8_t digits              # of \uXXXX so far
    uint8_t member              # MEMBER_*: what the key before this value is
    uint8_t seen                # there was a key "model"
    uint8_t settled             # the pool is known without it: it is looked at for its options only
    uint8_t completes           # the request is for a completion, whose stream has options
    uint8_t awaited             # the pool is known, and the body's end is waited for
    uint8_t streams             # its "stream" is true
    uint8_t stream_seen         # there was such a key
    uint8_t options             # OPTIONS_*
    uint8_t in_options          # inside of that object
    uint8_t leave               # what it says of a stream is said twice, or is no such thing: nobody adds to it
    uint8_t literal             # OF_*: what the literal that is read is the value of
    uint8_t found               # the model's name is whole: text[0:length]
    uint8_t too_long            # it is longer than any name: no model has it
    uint8_t fault               # REASON_* of what makes it a broken one
    uint16_t depth
    uint16_t length             # of `text`
    uint8_t key_length
    uint32_t unit               # the UTF-16 unit that is read
    uint32_t high               # the one before it, where it is the first half of a pair
    int64_t at                  # bytes looked at
    int64_t from_at             # where the model's value begins, behind its quote
    int64_t to_at               # where it ends, before its quote
    int64_t options_from        # where something is to be put into the options, and what it replaces
    int64_t options_to
    int64_t end_at              # where the object's closing brace is
    uint64_t arrays[JSON_WORDS]  # by depth: an array, or an object
    uint8_t key[KEY_ROOM]       # the last one of the object itself, or of its options, as far as there is room
    uint8_t text[MODEL_ROOM]    # the model

cdef void json_keep(JsonC *json, uint8_t c) noexcept nogil:
    if json.behind == JSON_COLON:
        if json.key_length < KEY_ROOM:
            json.key[json.key_length] = c
            json.key_length += 1
    elif json.length < MODEL_ROOM:
        json.text[json.length] = c
        json.length += 1
    else:
        json.too_long = True

cdef void json_keep_code(JsonC *json, uint32_t code) noexcept nogil:
    # A code point as UTF-8. Half of a pair is kept as it is: no name has one.
    if code < 0x80:
        json_keep(json, <uint8_t>code)
        return
    if code < 0x800:
        json_keep(json, <uint8_t>(0xC0 | code >> 6))
    else:
        if code < 0x10000:
            json_keep(json, <uint8_t>(0xE0 | code >> 12))
        else:
            json_keep(json, <uint8_t>(0xF0 | code >> 18))
            json_keep(json, <uint8_t>(0x80 | code >> 12 & 0x3F))
        json_keep(json, <uint8_t>(0x80 | code >> 6 & 0x3F))
    json_keep(json, <uint8_t>(0x80 | code & 0x3F))

cdef void json_keep_half(JsonC *json) noexcept nogil:
    # The first half of a pair, behind which no second one stands.
    if json.high:
        json_keep_code(json, json.high)
        json.high = 0

cdef int json_text_end(JsonC *json) noexcept nogil:
    # A string that was kept is whole. RC_OK or RC_BAD.
    json_keep_half(json)
    json.state = json.behind
    if json.behind == JSON_COMMA_OR_END:
        json.to_at = json.at
        json.found = True
        return RC_OK
    json.member = MEMBER_OTHER
    if json.depth == 2:
        json_option(json)
    elif text_same(json.key, json.key_length, b"model"):
        if json.seen or memcmp(json.key, b"model", 5) != 0:
            json.fault = REASON_TWO_MODELS if json.seen else REASON_MODEL_CASE
            return RC_BAD
        json.member = MEMBER_MODEL
        json.seen = True
    elif text_same(json.key, json.key_length, b"stream"):
        json.leave |= json.stream_seen != 0 or not json_key_is(json, b"stream")
        json.stream_seen = True
        json.member = MEMBER_STREAM
    elif text_same(json.key, json.key_length, b"stream_options"):
        json.leave |= json.options != OPTIONS_NONE or not json_key_is(json, b"stream_options")
        json.member = MEMBER_OPTIONS
    return RC_OK

cdef const uint8_t *json_skip_string(JsonC *json, const uint8_t *p, const uint8_t *end) noexcept nogil:
    # The rest of a string that is not kept, as fast as memchr: behind its quote, or `end`.
    cdef const uint8_t *quote
    cdef const uint8_t *before
    while p < end:
        quote = <const uint8_t *>memchr(p, c'"', end - p)
        before = end if quote is NULL else quote
        # An odd number of backslashes before it makes the quote a character like any other.
        while before > p and (before - 1)[0] == c"\\":
            before -= 1
        if before == p and json.escaped:
            before -= 1
        if quote is NULL:
            json.escaped = (end - before) & 1
            return end
        json.escaped = False
        p = quote + 1
        if not (quote - before) & 1:
            json.state = json.behind
            return p
    return end

cdef int json_text(JsonC *json, uint8_t c) noexcept nogil:
    # A byte of a string that is kept. RC_OK or RC_BAD.
    cdef const char *escapes = b'"\\/bfnrt'
    cdef const char *stand_for = b'"\\/\b\f\n\r\t'
    cdef int i
    if json.state == JSON_TEXT:
        if c == c'"':
            return json_text_end(json)
        if c == c"\\":
            json.state = JSON_ESCAPE
            return RC_OK
        json_keep_half(json)
        json_keep(json, c)
        # What no UTF-8 has: 0xC1 0xAD would be an m for a reader that does not look.
        return RC_BAD if c < 0x20 or c == 0xC0 or c == 0xC1 or c >= 0xF5 else RC_OK
    if json.state == JSON_UNICODE:
        if not text_class[c] & TEXT_HEX:
            return RC_BAD
        json.unit = json.unit << 4 | text_hex[c]
        json.digits += 1
        if json.digits < 4:
            return RC_OK
        json.state = JSON_TEXT
        if json.high and 0xDC00 <= json.unit <= 0xDFFF:
            json_keep_code(json, 0x10000 + ((json.high - 0xD800) << 10) + json.unit - 0xDC00)
            json.high = 0
            return RC_OK
        json_keep_half(json)
        if 0xD800 <= json.unit <= 0xDBFF:
            json.high = json.unit
        else:
            json_keep_code(json, json.unit)
        return RC_OK
    if c == c"u":
        json.state = JSON_UNICODE
        json.unit = 0
        json.digits = 0
        return RC_OK
    json.state = JSON_TEXT
    json_keep_half(json)
    for i in range(8):
        if c == <uint8_t>escapes[i]:
            json_keep(json, <uint8_t>stand_for[i])
            return RC_OK
    return RC_BAD

cdef int json_value(JsonC *json, uint8_t c) noexcept nogil:
    # The first byte of a value. RC_OK or RC_BAD.
    cdef bint array = c == c"["
    if json.member > MEMBER_MODEL:
        json_member(json, c)
    if json.member == MEMBER_MODEL:
        if c != c'"':
            json.fault = REASON_MODEL_TYPE
            return RC_BAD
        json.member = MEMBER_OTHER
        json.from_at = json.at + 1
        json.state = JSON_TEXT
        json.behind = JSON_COMMA_OR_END
    elif c == c'"':
        json.state = JSON_STRING
        json.behind = JSON_COMMA_OR_END
    elif array or c == JSON_OPEN:
        if json.depth == JSON_DEPTH:
            return RC_BAD
        json.arrays[json.depth >> 6] &= ~(<uint64_t>1 << (json.depth & 63))
        json.arrays[json.depth >> 6] |= <uint64_t>array << (json.depth & 63)
        json.depth += 1
        json.state = JSON_VALUE_OR_END if array else JSON_KEY_OR_END
    elif text_class[c] & TEXT_DIGIT or c == c"-" or c == c"t" or c == c"f" or c == c"n":
        json.state = JSON_SCALAR
    else:
        return RC_BAD
    return RC_OK

cdef bint json_in_array(JsonC *json) noexcept nogil:
    return (json.arrays[(json.depth - 1) >> 6] >> ((json.depth - 1) & 63)) & 1

cdef int json_next(JsonC *json, uint8_t c) noexcept nogil:
    # A byte that is neither in a string nor white space. RC_OK or RC_BAD.
    if json.state == JSON_VALUE:
        return json_value(json, c)
    if json.state == JSON_COLON:
        json.state = JSON_VALUE
        return RC_OK if c == c":" else RC_BAD
    if json.state == JSON_BEGIN:
        # Some readers pass over a byte order mark, and know the UTF-16 and UTF-32 behind one, or without.
        if c != JSON_OPEN and json.guessed and c != 0xEF and c != 0xFE and c != 0xFF and c:
            json.state = JSON_OTHER
            return RC_OK
        return json_value(json, c) if c == JSON_OPEN else RC_BAD
    if json.state == JSON_END:
        return RC_BAD
    if c == c'"' and (json.state == JSON_KEY or json.state == JSON_KEY_OR_END):
        json.key_length = 0
        json.state = JSON_TEXT if json.depth == 1 or (json.in_options and json.depth == 2) else JSON_STRING
        json.behind = JSON_COLON
        return RC_OK
    if c == c"," and json.state == JSON_COMMA_OR_END:
        json.state = JSON_VALUE if json_in_array(json) else JSON_KEY
        return RC_OK
    if json.state != JSON_KEY and c == (c"]" if json_in_array(json) else JSON_CLOSE):
        json.depth -= 1
        json.in_options = json.in_options and json.depth > 1
        if not json.depth:
            json.end_at = json.at
        json.state = JSON_COMMA_OR_END if json.depth else JSON_END
        return RC_OK
    return json_value(json, c) if json.state == JSON_VALUE_OR_END else RC_BAD

cdef bint json_empty(JsonC *json) noexcept nogil:
    # Whether a body that has ended is none.
    return json.state == JSON_BEGIN and (json.guessed or not json.at)

cdef bint json_whole(JsonC *json) noexcept nogil:
    # Whether nothing lacks at the body's end; else json.fault is set.
    if json.state == JSON_END or json.state == JSON_OTHER or json_empty(json):
        return True
    json.fault = REASON_JSON
    return False

cdef int json_scan(JsonC *json, const uint8_t *data, size_t n) noexcept nogil:
    # Looks at the next bytes of the body. RC_OK, or RC_BAD with json.fault.
    cdef const uint8_t *p = data
    cdef const uint8_t *end = data + n
    cdef int64_t begun = json.at
    cdef int rc = RC_OK
    cdef uint8_t c
    while p < end and rc == RC_OK and json.state != JSON_OTHER:
        if json.state == JSON_STRING:
            p = json_skip_string(json, p, end)
            continue
        c = p[0]
        json.at = begun + (p - data)
        if json.state == JSON_SCALAR:
            if c"a" <= text_lower[c] <= c"z" or text_class[c] & TEXT_DIGIT or c == c"-" or c == c"+" or c == c".":
                if json.literal and json.key_length < KEY_ROOM:
                    json.key[json.key_length] = c
                    json.key_length += 1
                p += 1
                continue
            json.state = JSON_COMMA_OR_END
            if json.literal:
                json_literal_end(json)
        if JSON_TEXT <= json.state <= JSON_UNICODE:
            rc = json_text(json, c)
        elif c != c" " and c != c"\n" and c != c"\r" and c != c"\t":
            rc = json_next(json, c)
        p += 1
    json.at = begun + n
    if rc != RC_OK and not json.fault:
        json.fault = REASON_JSON
    return rc
