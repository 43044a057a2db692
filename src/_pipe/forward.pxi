# forward: heads as the next hop gets them: its own fields, without those of the connection (rules B1, B2 and C1).

# Copies the field lines of `kinds`' complement: everything that is not hop-by-hop, in its order and with its bytes.
# `skip` is a bit mask of further kinds to leave out. Neighbouring lines are copied at once.
cdef void head_write_fields(WriterC *out, HeadC *head, uint32_t skip) noexcept nogil:
    cdef const uint8_t *start = NULL
    cdef size_t length = 0
    cdef FieldC *field
    cdef int i
    skip |= (1 << FIELD_CONNECTION) | (1 << FIELD_HOP)
    for i in range(head.count):
        field = &head.fields[i]
        if field.dropped or (skip >> field.kind) & 1:
            continue
        if field.recoded:
            write_bytes(out, start, length)
            write_bytes(out, field.line, field.value - field.line)
            write_text(out, b"chunked")
            start = field.value + field.value_length
            length = field.line_length - (start - field.line)
            continue
        if length and start + length == field.line:
            length += field.line_length
            continue
        write_bytes(out, start, length)
        start = field.line
        length = field.line_length
    write_bytes(out, start, length)

# Writes a list field with one more member: appended to the last line of that kind, or in a line of its own.
cdef void head_write_appended(WriterC *out, HeadC *head, uint8_t kind, const char *name, const void *member,
                              size_t n) noexcept nogil:
    cdef FieldC *last = NULL
    cdef FieldC *field
    cdef int i
    for i in range(head.count if (head.kinds >> kind) & 1 else 0):
        field = &head.fields[i]
        if field.kind != kind or field.dropped:
            continue
        if last is not NULL:
            write_bytes(out, last.line, last.line_length)
        last = field
    if last is not NULL and last.value_length:
        write_bytes(out, last.line, last.value + last.value_length - last.line)
        write_text(out, b", ")
    else:
        write_text(out, name)
        write_text(out, b": ")
    write_bytes(out, member, n)
    write_text(out, b"\r\n")

cdef FieldC *head_single(HeadC *head, uint8_t kind) noexcept nogil:
    # The one field of its kind; NULL where there is none, or more than one.
    cdef FieldC *found = NULL
    cdef int i
    for i in range(head.count if (head.kinds >> kind) & 1 else 0):
        if head.fields[i].kind == kind and not head.fields[i].dropped:
            if found is not NULL:
                return NULL
            found = &head.fields[i]
    return found

cdef void head_distrust(HeadC *head) noexcept nogil:
    # Drops names with underscores that read like one of ours where they become variables of an environment (CGI, WSGI): there
    # X_Forwarded_For is X-Forwarded-For.
    cdef uint8_t folded[HEAD_LONGEST_NAME]
    cdef FieldC *field
    cdef size_t at
    cdef int i
    for i in range(head.count):
        field = &head.fields[i]
        if (field.kind != FIELD_OTHER or field.name_length > HEAD_LONGEST_NAME
                or memchr(field.line, c"_", field.name_length) is NULL):
            continue
        for at in range(field.name_length):
            folded[at] = c"-" if field.line[at] == c"_" else field.line[at]
        field.dropped |= field_kind(folded, field.name_length) != FIELD_OTHER

# Writes the request head for the backend (rule B1). `host` stands in for a missing Host; `trusted` says that what the peer
# tells of the hops before it is believed.
cdef void head_write_request(WriterC *out, HeadC *head, const char *client, bint trusted, const char *host,
                             const uint8_t *request_id, size_t request_id_length) noexcept nogil:
    cdef bint upgrade = head.has_upgrade
    cdef const char *scheme = b"http"
    cdef FieldC *field
    cdef uint32_t skip = (
        (1 << FIELD_FORWARDED_FOR) | (1 << FIELD_FORWARDED_PROTO) | (1 << FIELD_VIA) | (1 << FIELD_REQUEST_ID))
    if trusted:
        field = head_single(head, FIELD_FORWARDED_PROTO)
        if field is not NULL and text_same(field.value, field.value_length, b"https"):
            scheme = b"https"
        field = head_single(head, FIELD_FORWARDED_HOST)
        if field is NULL or field.value_length == 0:
            skip |= 1 << FIELD_FORWARDED_HOST
        if not client[0]:
            skip ^= 1 << FIELD_FORWARDED_FOR        # a Unix socket has no address to append
    else:
        head_distrust(head)
        skip |= (1 << FIELD_FORWARDED_HOST) | (1 << FIELD_FORWARDED)
    if not upgrade:
        skip |= 1 << FIELD_UPGRADE
    if not head.expects:
        skip |= 1 << FIELD_EXPECT
    if head.absolute:
        skip |= 1 << FIELD_HOST
    write_bytes(out, head.method, head.method_length)
    write_text(out, b" ")
    if head.bare:
        if head.target_length == 0 and head_is(head.method, head.method_length, b"OPTIONS"):
            write_text(out, b"*")
        else:
            write_text(out, b"/")
    write_bytes(out, head.target, head.target_length)
    write_text(out, b" HTTP/1.1\r\n")
    if head.absolute:
        write_text(out, b"Host: ")
        write_bytes(out, head.authority, head.authority_length)
        write_text(out, b"\r\n")
    elif head.host_count == 0:
        write_text(out, b"Host: ")
        write_text(out, host)
        write_text(out, b"\r\n")
    head_write_fields(out, head, skip)
    if upgrade:
        write_text(out, b"Connection: Upgrade\r\n")
    if client[0] and trusted:
        head_write_appended(out, head, FIELD_FORWARDED_FOR, b"X-Forwarded-For", client, strlen(client))
    elif client[0]:
        write_text(out, b"X-Forwarded-For: ")
        write_text(out, client)
        write_text(out, b"\r\n")
    write_text(out, b"X-Forwarded-Proto: ")
    write_text(out, scheme)
    write_text(out, b"\r\n")
    if head.authority_length and (skip >> FIELD_FORWARDED_HOST) & 1:
        write_text(out, b"X-Forwarded-Host: ")
        write_bytes(out, head.authority, head.authority_length)
        write_text(out, b"\r\n")
    head_write_appended(out, head, FIELD_VIA, b"Via", b"1.1 llmpipe" if head.minor else b"1.0 llmpipe", 11)
    write_text(out, b"X-Request-ID: ")
    write_bytes(out, request_id, request_id_length)
    write_text(out, b"\r\n\r\n")

# Writes the response head for the client (rules C1 and C3). `connection` is the field's value, or NULL for none.
cdef void head_write_response(WriterC *out, HeadC *head, bint keep_transfer_encoding, const char *connection,
                              const uint8_t *request_id, size_t request_id_length) noexcept nogil:
    cdef uint32_t skip = 0
    if head.status != 101:
        skip |= 1 << FIELD_UPGRADE
    if not keep_transfer_encoding or head.unframed:
        skip |= 1 << FIELD_TRANSFER_ENCODING
    if head.unframed:
        skip |= 1 << FIELD_CONTENT_LENGTH
    write_text(out, b"HTTP/1.1 ")
    write_bytes(out, head.data + 9, 3)
    if head.reason_length:
        write_bytes(out, head.reason, head.reason_length)
    else:
        write_text(out, b" ")
    write_text(out, b"\r\n")
    head_write_fields(out, head, skip)
    if connection is not NULL:
        write_text(out, b"Connection: ")
        write_text(out, connection)
        write_text(out, b"\r\n")
    if head.request_id_count == 0 and (head.status >= 200 or head.status == 101):
        write_text(out, b"X-Request-ID: ")
        write_bytes(out, request_id, request_id_length)
        write_text(out, b"\r\n")
    write_text(out, b"\r\n")
