# head: HTTP/1 heads, read strictly (RFC 9112; rules A2, A4 and C2 of the contract).
#
# What a lenient and a strict reader could read differently is refused, never repaired. Nothing here touches a
# descriptor or a connection: bytes in, a HeadC out. A HeadC points into the bytes that it was read from.

# Fields that the forwarder looks at.
cdef enum:
    FIELD_OTHER = 0
    FIELD_HOST = 1
    FIELD_CONTENT_LENGTH = 2
    FIELD_TRANSFER_ENCODING = 3
    FIELD_CONNECTION = 4
    FIELD_HOP = 5               # hop-by-hop, never forwarded
    FIELD_UPGRADE = 6           # forwarded in an exchange that asks for an upgrade
    FIELD_EXPECT = 7
    FIELD_FORWARDED_FOR = 8
    FIELD_FORWARDED_PROTO = 9
    FIELD_FORWARDED_HOST = 10
    FIELD_FORWARDED = 11        # Forwarded, X-Real-IP: believed of trusted peers only
    FIELD_VIA = 12
    FIELD_REQUEST_ID = 13
    FIELD_CONTENT_TYPE = 14
    FIELD_CONTENT_ENCODING = 15
    FIELD_TRACEPARENT = 16

cdef enum:
    HEAD_MAX_FIELDS = 1024      # the most that the settings max_fields and max_response_fields allow
    HEAD_LONGEST_NAME = 19      # of those that field_kind knows
    HEAD_MAX_OPTIONS = 16       # members of Connection other than close, keep-alive and upgrade

cdef struct FieldC:
    const uint8_t *line         # where the line starts, with its name
    const uint8_t *value
    uint32_t name_length
    uint32_t value_length
    uint32_t line_length        # CRLF included
    uint8_t kind
    uint8_t dropped             # not for the next hop: named by Connection, or not believed
    uint8_t recoded             # Transfer-Encoding of a request whose "chunked" has capitals

cdef struct OptionC:
    const uint8_t *name
    size_t length

cdef struct HeadC:
    const uint8_t *data
    size_t length               # of the whole head, its empty line included
    const uint8_t *method       # requests
    size_t method_length
    const uint8_t *target       # origin-form or "*"; of an absolute-form target the part behind the authority
    size_t target_length
    const uint8_t *authority    # of an absolute-form target, else of Host
    size_t authority_length
    bint absolute
    bint bare                   # an absolute-form target without a path: "/" (or "*") has to be put before it
    int status                  # responses
    const uint8_t *reason       # with the space before it; may be empty
    size_t reason_length
    int minor                   # of the HTTP version
    uint8_t fault               # REASON_* of what makes it a broken one
    uint32_t kinds              # bit mask of the kinds of its fields
    int count                   # fields
    FieldC fields[HEAD_MAX_FIELDS]
    int option_count
    OptionC options[HEAD_MAX_OPTIONS]
    uint8_t framing
    int64_t content_length      # -1 where there is no such field
    bint chunked
    bint unframed               # a 204 that announces a body: the announcement is not forwarded
    bint close                  # Connection: close
    bint keep_alive             # the connection may be used again, by version and Connection
    bint asks_upgrade           # Connection: upgrade
    bint has_upgrade            # an Upgrade field, and not to h2c
    bint expects                # Expect: 100-continue
    int host_count
    const uint8_t *request_id
    size_t request_id_length    # 0 where there is none, or more than one
    int request_id_count
    const uint8_t *traceparent
    size_t traceparent_length   # 0 where there is none, or more than one
    bint event_stream           # Content-Type: text/event-stream, and no Content-Encoding: its lines can be read
    bint encoded

# Looks for the end of a head in data[0:n], of which the first `scanned[0]` bytes were looked at before. Each byte is
# looked at once, so that a head that comes byte by byte costs no more than one that comes whole. Also refuses, as soon
# as it is there, what no head can hold: a client that speaks TLS is answered at once.
# RC_DONE with *length set, RC_AGAIN, RC_BAD (head_scan_fault tells why); RC_OK for an empty line that stands before the
# head.
cdef int head_scan(const uint8_t *data, size_t n, uint32_t *scanned, size_t *length) noexcept nogil:
    cdef const uint8_t *p = data + scanned[0]
    cdef const uint8_t *end = data + n
    cdef const uint8_t *found
    if p > data and p < end and (p - 1)[0] == c"\r" and p[0] != c"\n":
        return RC_BAD
    while p < end:
        found = <const uint8_t *>memchr(p, c"\n", end - p)
        if found is NULL:
            break
        if found == data or (found - 1)[0] != c"\r":
            return RC_BAD
        if found - data == 1:
            return RC_OK
        if (found - 2)[0] == c"\n":
            length[0] = found + 1 - data
            return RC_DONE
        p = found + 1
    while p < end:
        if not text_class[p[0]] & TEXT_VALUE and not (p[0] == c"\r" and p + 1 == end):
            return RC_BAD
        p += 1
    scanned[0] = <uint32_t>n
    return RC_AGAIN

cdef uint8_t head_scan_fault(const uint8_t *data, size_t n) noexcept nogil:
    # Why head_scan refuses these bytes.
    cdef size_t i
    if n and data[0] == 0x16:
        return REASON_TLS
    for i in range(n):
        if data[i] == c"\n":
            if i == 0 or data[i - 1] != c"\r":
                return REASON_BARE_LF
        elif data[i] == c"\r":
            if i + 1 < n and data[i + 1] != c"\n":
                return REASON_BARE_CR
        elif not text_class[data[i]] & TEXT_VALUE:
            return REASON_CONTROL
    return REASON_FIRST_LINE    # more than one empty line stands before it

cdef uint8_t field_kind(const uint8_t *p, size_t n) noexcept nogil:
    if n == 2 and text_same(p, n, b"te"):
        return FIELD_HOP
    if n == 3 and text_same(p, n, b"via"):
        return FIELD_VIA
    if n == 4 and text_same(p, n, b"host"):
        return FIELD_HOST
    if n == 6 and text_same(p, n, b"expect"):
        return FIELD_EXPECT
    if n == 7 and text_same(p, n, b"upgrade"):
        return FIELD_UPGRADE
    if n == 10:
        if text_same(p, n, b"connection"):
            return FIELD_CONNECTION
        if text_same(p, n, b"keep-alive"):
            return FIELD_HOP
    if n == 11 and text_same(p, n, b"traceparent"):
        return FIELD_TRACEPARENT
    if n == 12:
        if text_same(p, n, b"content-type"):
            return FIELD_CONTENT_TYPE
        if text_same(p, n, b"x-request-id"):
            return FIELD_REQUEST_ID
    if n == 9 and (text_same(p, n, b"forwarded") or text_same(p, n, b"x-real-ip")):
        return FIELD_FORWARDED
    if n == 14 and text_same(p, n, b"content-length"):
        return FIELD_CONTENT_LENGTH
    if n == 14 and text_same(p, n, b"http2-settings"):
        return FIELD_HOP
    if n == 15 and text_same(p, n, b"x-forwarded-for"):
        return FIELD_FORWARDED_FOR
    if n == 16:
        if text_same(p, n, b"content-encoding"):
            return FIELD_CONTENT_ENCODING
        if text_same(p, n, b"proxy-connection"):
            return FIELD_HOP
        if text_same(p, n, b"x-forwarded-host"):
            return FIELD_FORWARDED_HOST
    if n == 17:
        if text_same(p, n, b"transfer-encoding"):
            return FIELD_TRANSFER_ENCODING
        if text_same(p, n, b"x-forwarded-proto"):
            return FIELD_FORWARDED_PROTO
    if n == 18 and text_same(p, n, b"proxy-authenticate"):
        return FIELD_HOP
    if n == 19 and text_same(p, n, b"proxy-authorization"):
        return FIELD_HOP
    return FIELD_OTHER

cdef uint8_t head_fault(HeadC *head, uint8_t fault) noexcept nogil:
    # What head_scan refuses while a head comes is the reason also where the head came at once.
    cdef uint8_t scanned = head_scan_fault(head.data, head.length)
    return fault if scanned == REASON_FIRST_LINE or fault == REASON_FIELDS else scanned

cdef int head_bad(HeadC *head, uint8_t fault) noexcept nogil:
    head.fault = head_fault(head, fault)
    return RC_BAD

# Connection: its members tell about this hop only (RFC 9110 section 7.6.1).
cdef int head_read_connection(HeadC *head, FieldC *field) noexcept nogil:
    cdef const uint8_t *rest = field.value
    cdef size_t left = field.value_length
    cdef const uint8_t *member = NULL
    cdef size_t n = 0
    cdef uint8_t kind
    while text_next_member(&rest, &left, &member, &n):
        if not text_is(member, n, TEXT_TOKEN):
            return head_bad(head, REASON_CONNECTION)
        if text_same(member, n, b"close"):
            head.close = True
        elif text_same(member, n, b"keep-alive"):
            head.keep_alive = True
        elif text_same(member, n, b"upgrade"):
            head.asks_upgrade = True
        else:
            # A peer that calls the framing or the address hop-by-hop wants the next one to read another message.
            kind = field_kind(member, n)
            if kind == FIELD_HOST or kind == FIELD_CONTENT_LENGTH or kind == FIELD_TRANSFER_ENCODING:
                return head_bad(head, REASON_CONNECTION)
            if head.option_count == HEAD_MAX_OPTIONS:
                return head_bad(head, REASON_CONNECTION)
            head.options[head.option_count].name = member
            head.options[head.option_count].length = n
            head.option_count += 1
    return RC_OK

cdef uint8_t field_name_fault(const uint8_t *p, const uint8_t *end) noexcept nogil:
    # Why a line that begins at `p` is no field: its name, which is p[0:end], does not end in a colon.
    if end[0] == c" " or end[0] == c"\t":
        return REASON_FOLDED if end == p else REASON_SPACE_BEFORE_COLON
    return REASON_FIELD_NAME

cdef bint upgrade_lists(const uint8_t *value, size_t n, const char *lower) noexcept nogil:
    # Whether an Upgrade field names this protocol, in whichever version: name [ "/" version ] (RFC 9110 section 7.8).
    cdef const uint8_t *member = NULL
    cdef const uint8_t *slash
    cdef size_t length = 0
    while text_next_member(&value, &n, &member, &length):
        slash = <const uint8_t *>memchr(member, c"/", length)
        if text_same(member, length if slash is NULL else slash - member, lower):
            return True
    return False

cdef bint host_is(const uint8_t *p, size_t n) noexcept nogil:
    # Whether an authority is a host, and perhaps a port: uri-host [ ":" port ] (RFC 9110 section 7.2). Its characters are
    # of TEXT_HOST. What stands behind a second colon, or outside the brackets, is what two readers take for two addresses.
    cdef size_t i = 0
    cdef bint literal = n > 0 and p[0] == c"["
    if literal:
        while i < n and p[i] != c"]":
            i += 1
            if i < n and p[i] == c"[":
                return False
        if i < 2 or i == n:
            return False
        i += 1
    else:
        while i < n and p[i] != c":":
            if p[i] == c"[" or p[i] == c"]":
                return False
            if p[i] == c"%" and (n - i < 3 or not text_is(p + i + 1, 2, TEXT_HEX)):
                return False
            i += 1
    if i == n:
        return True             # no port; an empty Host too, of a client that has no authority
    return i > 0 and p[i] == c":" and text_is(p + i + 1, n - i - 1, TEXT_DIGIT)

# Reads the field lines from `p` to the end of the head into `head`.
# RC_OK or RC_BAD, for more than `max_fields` too; then `fault` says why.
cdef int head_read_fields(HeadC *head, const uint8_t *p, int max_fields) noexcept nogil:
    cdef const uint8_t *end = head.data + head.length - 2      # the empty line
    cdef const uint8_t *line_end
    cdef const uint8_t *colon
    cdef FieldC *field
    cdef int i
    cdef int j
    while p < end:
        if head.count == max_fields:
            return head_bad(head, REASON_FIELDS)
        line_end = <const uint8_t *>memchr(p, c"\n", end - p) - 1  # head_scan saw its CR
        field = &head.fields[head.count]
        colon = p
        while text_class[colon[0]] & TEXT_TOKEN:
            colon += 1
        if colon == p or colon[0] != c":":
            return head_bad(head, field_name_fault(p, colon))
        field.line = p
        field.line_length = <uint32_t>(line_end + 2 - p)
        field.name_length = <uint32_t>(colon - p)
        field.kind = field_kind(p, field.name_length)
        field.dropped = field.recoded = False
        head.kinds |= <uint32_t>1 << field.kind
        p = colon + 1
        while p < line_end and (p[0] == c" " or p[0] == c"\t"):
            p += 1
        field.value = p
        p = line_end
        while p > field.value and ((p - 1)[0] == c" " or (p - 1)[0] == c"\t"):
            p -= 1
        field.value_length = <uint32_t>(p - field.value)
        if not text_is_value(field.value, field.value_length):
            return head_bad(head, REASON_CONTROL)
        p = line_end + 2
        head.count += 1
        if field.kind == FIELD_OTHER:
            continue
        if field.kind == FIELD_CONTENT_LENGTH:
            if head.content_length != -1:
                return head_bad(head, REASON_TWO_LENGTHS)
            head.content_length = text_number(field.value, field.value_length)
            if head.content_length < 0:
                return head_bad(head, REASON_LENGTH)
        elif field.kind == FIELD_TRANSFER_ENCODING:
            if head.chunked:
                return head_bad(head, REASON_TWO_CODINGS)
            if not text_same(field.value, field.value_length, b"chunked"):
                return head_bad(head, REASON_CODING)
            head.chunked = True
        elif field.kind == FIELD_CONNECTION:
            if head_read_connection(head, field) != RC_OK:
                return RC_BAD
        elif field.kind == FIELD_UPGRADE:
            # h2c is not forwarded: the frames that follow it would pass by every rule here.
            if not upgrade_lists(field.value, field.value_length, b"h2c"):
                head.has_upgrade = True
            else:
                field.kind = FIELD_HOP
        elif field.kind == FIELD_HOST:
            head.host_count += 1
            if not head.absolute:
                head.authority = field.value
                head.authority_length = field.value_length
            if not text_is(field.value, field.value_length, TEXT_HOST) or not host_is(field.value, field.value_length):
                return head_bad(head, REASON_HOST)
        elif field.kind == FIELD_EXPECT:
            # An empty list expects nothing, and is not forwarded: a server might not know that.
            if text_lists_nothing(field.value, field.value_length):
                field.dropped = True
            else:
                head.expects = True
        elif field.kind == FIELD_REQUEST_ID:
            head.request_id_count += 1
            head.request_id = field.value
            head.request_id_length = field.value_length
        elif field.kind == FIELD_TRACEPARENT:
            head.traceparent_length = field.value_length if head.traceparent is NULL else 0
            head.traceparent = field.value
        elif field.kind == FIELD_CONTENT_ENCODING:
            head.encoded |= field.value_length > 0 and not text_same(field.value, field.value_length, b"identity")
        elif field.kind == FIELD_CONTENT_TYPE:
            head.event_stream = (
                field.value_length >= 17 and text_same(field.value, 17, b"text/event-stream")
                and (field.value_length == 17 or field.value[17] == c";" or field.value[17] == c" "))
    if head.encoded:
        head.event_stream = False       # neither comments nor the ends of events can be seen, nor an error event written
    for i in range(head.option_count):
        for j in range(head.count):
            if text_same_bytes(head.fields[j].line, head.fields[j].name_length,
                               head.options[i].name, head.options[i].length):
                head.fields[j].dropped = True
    if head.chunked and head.content_length != -1:
        return head_bad(head, REASON_TWO_FRAMINGS)
    if head.chunked and head.minor == 0:
        return head_bad(head, REASON_OLD_CHUNKED)
    # Of an event the last word counts: close wins over keep-alive; 1.0 closes unless told otherwise.
    head.keep_alive = not head.close and (head.minor == 1 or head.keep_alive)
    return RC_OK

cdef void head_clear(HeadC *head, const uint8_t *data, size_t length) noexcept nogil:
    # Everything but the field array, which is as long as `count` says.
    head.data = data
    head.length = length
    # Of what a broken head does not hold, nothing is copied; but from somewhere.
    head.method = head.target = head.authority = head.reason = head.request_id = data
    head.method_length = head.target_length = head.authority_length = head.reason_length = 0
    head.absolute = head.bare = False
    head.status = 0
    head.minor = 1
    head.fault = REASON_NONE
    head.kinds = 0
    head.count = 0
    head.option_count = 0
    head.framing = FRAMING_NONE
    head.content_length = -1
    head.chunked = head.unframed = head.close = head.keep_alive = False
    head.asks_upgrade = head.has_upgrade = head.expects = head.event_stream = head.encoded = False
    head.host_count = head.request_id_count = 0
    head.request_id_length = 0
    head.traceparent = NULL
    head.traceparent_length = 0

# Splits an absolute-form target into authority and the rest (RFC 9112 section 3.2.2). RC_OK or RC_BAD.
cdef int head_read_absolute(HeadC *head) noexcept nogil:
    cdef const uint8_t *p = head.target
    cdef const uint8_t *end = head.target + head.target_length
    cdef const uint8_t *start
    if head.target_length > 7 and text_same(p, 7, b"http://"):
        start = p + 7
    elif head.target_length > 8 and text_same(p, 8, b"https://"):
        start = p + 8
    else:
        return head_bad(head, REASON_TARGET)
    p = start
    while p < end and p[0] != c"/" and p[0] != c"?":
        if not text_class[p[0]] & TEXT_HOST:
            return head_bad(head, REASON_TARGET)      # user information ("@") too: it is deprecated, and a way to disguise an address
        p += 1
    if p == start or not host_is(start, p - start):
        return head_bad(head, REASON_TARGET)
    head.absolute = True
    head.authority = start
    head.authority_length = p - start
    head.target = p
    head.target_length = end - p
    head.bare = p == end or p[0] == c"?"
    return RC_OK

cdef bint head_is(const uint8_t *p, size_t n, const char *text) noexcept nogil:
    return n == strlen(text) and memcmp(p, text, n) == 0

cdef int head_refused(HeadC *head, int status, uint8_t fault) noexcept nogil:
    head.fault = head_fault(head, fault) if status == 400 else fault
    return status

# Reads a request head of `length` bytes (found by head_scan). RC_OK, or the status to answer with; then `fault` says why.
cdef inline int head_read_request(HeadC *head, const uint8_t *data, size_t length, size_t max_line,
                           int max_fields) noexcept nogil:
    cdef const uint8_t *line_end = <const uint8_t *>memchr(data, c"\n", length) - 1
    cdef const uint8_t *p = data
    cdef const uint8_t *version
    cdef int i
    cdef FieldC *field
    head_clear(head, data, length)
    if <size_t>(line_end - data) > max_line:
        return head_refused(head, 414, REASON_LINE_TOO_LONG)
    head.method = p
    while text_class[p[0]] & TEXT_TOKEN:
        p += 1
    head.method_length = p - data
    if p[0] != c" " or p == data:
        return head_refused(head, 400, REASON_FIRST_LINE)
    p += 1
    head.target = p
    while text_class[p[0]] & TEXT_TARGET:
        p += 1
    head.target_length = p - head.target
    if p[0] != c" " or head.target_length == 0:
        return head_refused(head, 400, REASON_TARGET if p < line_end and p[0] != c" " else REASON_FIRST_LINE)
    version = p + 1
    if line_end - version != 8 or memcmp(version, b"HTTP/", 5) != 0:
        return head_refused(head, 400, REASON_FIRST_LINE)
    if not (text_class[version[5]] & TEXT_DIGIT and version[6] == c"." and text_class[version[7]] & TEXT_DIGIT):
        return head_refused(head, 400, REASON_FIRST_LINE)
    if version[5] != c"1" or version[7] > c"1":
        return head_refused(head, 505, REASON_VERSION)
    head.minor = version[7] - c"0"
    if head_is(head.method, head.method_length, b"CONNECT"):
        return head_refused(head, 501, REASON_CONNECT)
    if head.target[0] != c"/":
        if head.target_length == 1 and head.target[0] == c"*":
            if not head_is(head.method, head.method_length, b"OPTIONS"):
                return head_refused(head, 400, REASON_TARGET)
        elif head_read_absolute(head) != RC_OK:
            return 400
    if head_read_fields(head, line_end + 2, max_fields) != RC_OK:
        return 431 if head.fault == REASON_FIELDS else 400
    if head.host_count > 1:
        return head_refused(head, 400, REASON_TWO_HOSTS)
    if head.minor == 1 and head.host_count == 0:
        return head_refused(head, 400, REASON_NO_HOST)
    if head.chunked:
        for i in range(head.count):
            field = &head.fields[i]
            # Coding names have no case (RFC 9112 section 7), but a backend that forgot it would see no body at all.
            if field.kind == FIELD_TRANSFER_ENCODING:
                field.recoded = memcmp(field.value, b"chunked", 7) != 0
        head.framing = FRAMING_CHUNKED
    elif head.content_length > 0:
        head.framing = FRAMING_LENGTH
    if head.expects:
        for i in range(head.count):
            field = &head.fields[i]
            if (field.kind == FIELD_EXPECT and not text_same(field.value, field.value_length, b"100-continue")
                    and not text_lists_nothing(field.value, field.value_length)):
                return head_refused(head, 417, REASON_EXPECTATION)
        head.expects = head.minor == 1      # a 1.0 client may not expect anything (RFC 9110 section 10.1.1)
    if head.request_id_count != 1 or not text_is(head.request_id, head.request_id_length, TEXT_VISIBLE):
        head.request_id_length = 0
    # An upgrade with a body would leave two readings of where the new protocol starts.
    if head.minor == 0 or not head.asks_upgrade or head.framing != FRAMING_NONE:
        head.has_upgrade = False
    return RC_OK

# Reads a response head to a request with method HEAD or not. RC_OK or RC_BAD.
cdef int head_read_response(HeadC *head, const uint8_t *data, size_t length, int max_fields,
                            bint to_head) noexcept nogil:
    cdef const uint8_t *line_end = <const uint8_t *>memchr(data, c"\n", length) - 1
    cdef const uint8_t *p
    head_clear(head, data, length)
    if line_end - data < 12 or memcmp(data, b"HTTP/1.", 7) != 0 or (data[7] != c"0" and data[7] != c"1"):
        return head_bad(head, REASON_FIRST_LINE)
    head.minor = data[7] - c"0"
    p = data + 9
    if data[8] != c" " or not text_is(p, 3, TEXT_DIGIT) or p[0] == c"0":
        return head_bad(head, REASON_FIRST_LINE)
    head.status = (p[0] - c"0") * 100 + (p[1] - c"0") * 10 + (p[2] - c"0")
    head.reason = data + 12
    head.reason_length = line_end - head.reason
    if head.reason_length and (head.reason[0] != c" " or not text_is(head.reason, head.reason_length, TEXT_VALUE)):
        return head_bad(head, REASON_FIRST_LINE)
    if head_read_fields(head, line_end + 2, max_fields) != RC_OK:
        return RC_BAD
    # 1xx and 204 have no framing (RFC 9110 section 8.6, RFC 9112 section 6.1): a client that obeyed one would take the next
    # response for a body. A length of nothing is what some servers give a 204; everyone reads it alike. Of a 204 one reading
    # is left once nothing announces a body, nothing behind it is read and its connection is closed; behind a 1xx the real
    # answer has to be read.
    if head.chunked or head.content_length > 0:
        if head.status < 200:
            return head_bad(head, REASON_INTERIM_BODY)
        if head.status == 204:
            head.unframed = True
            head.keep_alive = False
    if to_head or head.status < 200 or head.status == 204 or head.status == 304:
        head.framing = FRAMING_NONE
    elif head.chunked:
        head.framing = FRAMING_CHUNKED
    elif head.content_length > 0:
        head.framing = FRAMING_LENGTH
    elif head.content_length < 0:
        head.framing = FRAMING_CLOSE
        head.keep_alive = False
    return RC_OK
