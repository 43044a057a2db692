# targets: what fuzzers run. An input breaks a rule: sim_fail() says which. The readers' rules: the result does not depend on
# how the bytes were cut, nothing behind the last byte is read (each input ends where its allocation does), and what is
# written for the next hop reads as the same message, with nothing left that was for this hop only.

import traceback

from libc.stdlib cimport abort

cdef extern from *:
    """
    #ifdef LLMPIPE_FUZZ
    int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*run)(const uint8_t *data, size_t n));
    size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t most);
    static size_t (*fuzz_mutator)(uint8_t *, size_t, size_t, unsigned int);
    size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t most, unsigned int seed) {
        return fuzz_mutator(data, n, most, seed);
    }
    #else
    /* Only the flavour "fuzz" has a fuzzer in it. */
    static int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*run)(const uint8_t *data, size_t n)) { return -1; }
    static size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t most) { return n; }
    static size_t (*fuzz_mutator)(uint8_t *, size_t, size_t, unsigned int);
    #endif
    """
    int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*run)(const uint8_t *data, size_t n) noexcept)
    size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t most) nogil
    size_t (*fuzz_mutator)(uint8_t *data, size_t n, size_t most, unsigned int seed) noexcept nogil

cdef enum:
    TARGET_REQUEST_HEAD = 0
    TARGET_RESPONSE_HEAD = 1
    TARGET_CHUNKED = 2
    TARGET_CONVERSATION = 3
    TARGET_EXCHANGE = 4
    TARGET_JSON = 5
    MOST_INPUT = 4096
    MOST_OPS = 256

TARGETS = ("request_head", "response_head", "chunked", "conversation", "exchange", "json")

cdef HeadC target_head
cdef HeadC target_again
cdef int target_now

cdef void target_same(const char *what, bint holds, int64_t number) noexcept nogil:
    if not holds:
        sim_fail("a reader breaks a rule", what, number)

cdef int target_scan(const uint8_t *data, size_t n, size_t step, size_t *length) noexcept nogil:
    # head_scan on bytes that come `step` at a time.
    cdef uint32_t scanned = 0
    cdef size_t there = 0
    cdef int rc = RC_AGAIN
    while rc == RC_AGAIN and there < n:
        there = there + step if there + step < n else n
        rc = head_scan(data, there, &scanned, length)
    return rc

cdef void target_fields(HeadC *head, bint upgrade) noexcept nogil:
    # What has been written for the next hop: whole fields, and none that was for the hop before.
    cdef FieldC *field
    cdef int i
    for i in range(head.count):
        field = &head.fields[i]
        target_same("a field's name", field.name_length and text_is(field.line, field.name_length, TEXT_TOKEN), i)
        target_same("a field's value", text_is(field.value, field.value_length, TEXT_VALUE), i)
        target_same("a field of the hop", field.kind != FIELD_HOP, i)
        target_same("Upgrade", upgrade or field.kind != FIELD_UPGRADE, i)
        target_same("a field that Connection names", not field.dropped, i)

cdef int target_count(HeadC *head, uint8_t kind) noexcept nogil:
    cdef int count = 0
    cdef int i
    for i in range(head.count):
        count += head.fields[i].kind == kind
    return count

cdef void target_forwarded(HeadC *head, bint trusted) noexcept nogil:
    # What has been written about the hops before: one scheme and one that is one of two, and of a peer that is not trusted no word.
    cdef FieldC *scheme = head_single(head, FIELD_FORWARDED_PROTO)
    cdef FieldC *client = head_single(head, FIELD_FORWARDED_FOR)
    cdef int i
    target_same("a single X-Forwarded-Proto", scheme is not NULL and text_same_exactly(
        scheme.value, scheme.value_length, b"http" if scheme.value_length == 4 else b"https", scheme.value_length), 0)
    if trusted:
        return
    target_same("http of an untrusted peer", scheme is not NULL and scheme.value_length == 4, 0)
    target_same("the address of an untrusted peer", client is not NULL and text_same_exactly(
        client.value, client.value_length, b"127.0.0.1", 9), 0)
    target_same("at most one X-Forwarded-Host", target_count(head, FIELD_FORWARDED_HOST) <= 1, 0)
    target_same("Forwarded of an untrusted peer", target_count(head, FIELD_FORWARDED) == 0, 0)
    for i in range(head.count):
        head.fields[i].dropped = False
    head_distrust(head)
    for i in range(head.count):
        target_same("a name that folds into one of ours", not head.fields[i].dropped, i)

cdef bint target_reads_trust(HeadC *head) noexcept nogil:
    # Who asked, as everybody's word or nobody's: an address in either case, and the same for the last member.
    cdef TrustC trust
    cdef HostC first
    cdef HostC last
    cdef char text[46]
    memset(&trust, 0, sizeof(trust))
    memset(&first, 0, sizeof(first))
    memset(&last, 0, sizeof(last))
    trust_origin(&trust, head, &last)
    trust.count = 2
    trust.networks[0].host.bytes[10] = trust.networks[0].host.bytes[11] = 0xFF
    trust.networks[0].bits = 96
    trust_origin(&trust, head, &first)
    if not host_known(&first) and not host_known(&last):
        return True
    host_text(&first, text, sizeof(text))
    host_text(&last, text, sizeof(text))
    return host_known(&first) or not host_known(&last)

cdef void target_request(const uint8_t *data, size_t n) noexcept nogil:
    cdef HeadC *head = &target_head
    cdef HeadC *again = &target_again
    cdef size_t length = 0
    cdef size_t in_bytes = 0
    cdef int status = 0
    cdef int rc = target_scan(data, n, n, &length)
    cdef int bytewise = target_scan(data, n, 1, &in_bytes)
    if rc == RC_DONE:
        target_same("length", length <= n, <int64_t>length)
        status = head_read_request(head, data, length, 1000, 64)
    if bytewise == RC_DONE:
        target_same("end", rc == RC_DONE and length == in_bytes, <int64_t>in_bytes)
    elif bytewise == RC_BAD:
        target_same("refused byte by byte only", rc != RC_DONE or status != RC_OK, status)
    else:
        target_same("verdict", rc == bytewise, rc)
    target_same("a reason", rc != RC_DONE or (status == RC_OK) == (head.fault == REASON_NONE), head.fault)
    if rc != RC_DONE or status != RC_OK:
        return
    target_same("method", head.method_length and text_is(head.method, head.method_length, TEXT_TOKEN), 0)
    target_same("target", text_is(head.target, head.target_length, TEXT_TARGET), 0)
    target_same("framings", not (head.chunked and head.content_length >= 0), 0)
    target_same("Host", head.host_count == 1 or (head.minor == 0 and head.host_count == 0), head.host_count)
    target_same("who asked", target_reads_trust(head), 0)
    target_written(head, again, True)
    target_written(head, again, False)

cdef void target_written(HeadC *head, HeadC *again, bint trusted) noexcept nogil:
    # What the backend gets of a request reads as the same one.
    cdef uint8_t room[MOST_INPUT * 3]
    cdef WriterC out
    cdef size_t in_bytes = 0
    cdef int status
    cdef int i
    write_start(&out, room, sizeof(room))
    head_write_request(&out, head, b"127.0.0.1", trusted, b"backend:1", b"id", 2)
    if out.full:
        return
    target_same("written scan", target_scan(room, out.used, out.used, &in_bytes) == RC_DONE and in_bytes == out.used, 0)
    status = head_read_request(again, room, out.used, MOST_INPUT, HEAD_MAX_FIELDS)
    target_same("written read", status == RC_OK, status)
    if status != RC_OK:
        return
    target_same("written method", text_same_exactly(again.method, again.method_length, head.method, head.method_length), 0)
    target_same("written target", again.target_length == head.target_length + head.bare and memcmp(
        again.target + head.bare, head.target, head.target_length) == 0, 0)
    target_same("written framing", again.framing == head.framing and (
        head.framing != FRAMING_LENGTH or again.content_length == head.content_length), again.framing)
    target_same("written Host", again.host_count == 1, again.host_count)
    for i in range(again.count):
        target_same("chunked in capitals", not again.fields[i].recoded, i)
    target_same("written expectation", again.expects == head.expects, again.expects)
    target_fields(again, head.has_upgrade)
    target_forwarded(again, trusted)

cdef bint text_same_exactly(const uint8_t *p, size_t n, const uint8_t *q, size_t m) noexcept nogil:
    return n == m and memcmp(p, q, n) == 0

cdef void target_response(const uint8_t *data, size_t n) noexcept nogil:
    # The first byte says whether the method is HEAD and whether the framing is kept.
    cdef uint8_t room[MOST_INPUT * 3]
    cdef WriterC out
    cdef HeadC *head = &target_head
    cdef HeadC *again = &target_again
    cdef size_t length = 0
    cdef size_t in_bytes = 0
    cdef bint to_head
    cdef bint keeps
    cdef int status = RC_BAD
    cdef int rc
    cdef int bytewise
    if n == 0:
        return
    to_head = data[0] & 1
    keeps = (data[0] & 2) != 0
    data += 1
    n -= 1
    rc = target_scan(data, n, n, &length)
    bytewise = target_scan(data, n, 1, &in_bytes)
    if rc == RC_DONE:
        target_same("length", length <= n, <int64_t>length)
        status = head_read_response(head, data, length, 64, to_head)
    if bytewise == RC_DONE:
        target_same("end", rc == RC_DONE and length == in_bytes, <int64_t>in_bytes)
    elif bytewise == RC_BAD:
        target_same("refused byte by byte only", status != RC_OK, status)
    else:
        target_same("verdict", rc == bytewise, rc)
    target_same("a reason", rc != RC_DONE or (status == RC_OK) == (head.fault == REASON_NONE), head.fault)
    if status != RC_OK:
        return
    target_same("status", 100 <= head.status <= 999, head.status)
    target_same("framings", not (head.chunked and head.content_length >= 0), 0)
    write_start(&out, room, sizeof(room))
    head_write_response(&out, head, keeps, b"close", b"id", 2)
    if out.full:
        return
    target_same("written scan", target_scan(room, out.used, out.used, &in_bytes) == RC_DONE and in_bytes == out.used, 0)
    status = head_read_response(again, room, out.used, HEAD_MAX_FIELDS, to_head)
    target_same("written read", status == RC_OK, status)
    if status != RC_OK:
        return
    target_same("written status", again.status == head.status, again.status)
    if head.unframed:
        target_same("written 204", not again.chunked and again.content_length < 0 and not head.keep_alive, 0)
    elif keeps or not head.chunked:
        target_same("written framing", again.framing == head.framing and again.content_length == head.content_length,
                    again.framing)
    target_same("written close", again.close, 0)
    target_fields(again, head.status == 101)

cdef int target_chunks(const uint8_t *data, size_t n, size_t step, size_t *used, uint8_t *body, size_t *length,
                       bint *content, bint *at_start) noexcept nogil:
    # The body that comes `step` bytes at a time, and what the event scanner makes of it.
    cdef ChunkC chunk
    cdef uint8_t sse = SSE_EVENT_START
    cdef const uint8_t *piece = NULL
    cdef size_t piece_length = 0
    cdef size_t consumed
    cdef size_t there = 0
    cdef size_t part
    cdef int rc = RC_AGAIN
    memset(&chunk, 0, sizeof(chunk))
    length[0] = 0
    content[0] = False
    used[0] = 0
    while rc == RC_AGAIN and there < n:
        part = step if step < n - there else n - there
        consumed = 0
        while True:
            rc = chunk_next(&chunk, data + there, part, &consumed, &piece, &piece_length)
            if rc != RC_OK:
                break
            memcpy(body + length[0], piece, piece_length)
            length[0] += piece_length
            content[0] |= sse_follow(&sse, piece, piece_length)
        target_same("consumed", consumed <= part and (rc != RC_AGAIN or consumed == part), <int64_t>consumed)
        used[0] += consumed
        there += part
    at_start[0] = sse == SSE_EVENT_START
    return rc

cdef void target_chunked(const uint8_t *data, size_t n) noexcept nogil:
    cdef uint8_t bodies[2][MOST_INPUT]
    cdef size_t used[2]
    cdef size_t length[2]
    cdef bint content[2]
    cdef bint at_start[2]
    cdef int rc[2]
    cdef size_t steps[2]
    cdef int i
    if n == 0:
        return
    steps[0] = 1
    steps[1] = 1 + data[0]
    data += 1
    n -= 1
    rc[0] = target_chunks(data, n, n if n else 1, &used[0], bodies[0], &length[0], &content[0], &at_start[0])
    for i in range(2):
        rc[1] = target_chunks(data, n, steps[i], &used[1], bodies[1], &length[1], &content[1], &at_start[1])
        target_same("chunks: verdict", rc[0] == rc[1], rc[1])
        target_same("chunks: end", used[0] == used[1], <int64_t>used[1])
        target_same("chunks: body", text_same_exactly(bodies[0], length[0], bodies[1], length[1]), <int64_t>length[1])
        target_same("events: content", content[0] == content[1], content[1])
        target_same("events: between two", at_start[0] == at_start[1], at_start[1])

cdef void target_json(const uint8_t *data, size_t n) noexcept nogil:
    # The first byte says whether it is known to be JSON, and how long pieces are.
    cdef JsonC whole
    cdef JsonC cut
    cdef size_t step
    cdef size_t there = 0
    cdef size_t part
    cdef int rc[2]
    if n == 0:
        return
    memset(&whole, 0, sizeof(whole))
    memset(&cut, 0, sizeof(cut))
    whole.guessed = cut.guessed = data[0] & 1
    step = 1 + (data[0] >> 1) % 7
    data += 1
    n -= 1
    rc[0] = json_scan(&whole, data, n)
    rc[1] = RC_OK
    while there < n and rc[1] == RC_OK:
        part = step if step < n - there else n - there
        rc[1] = json_scan(&cut, data + there, part)
        there += part
    target_same("JSON: verdict", rc[0] == rc[1], rc[1])
    target_same("JSON: a reason", (rc[0] == RC_OK) == (whole.fault == REASON_NONE), whole.fault)
    target_same("JSON: the reason", whole.fault == cut.fault, cut.fault)
    target_same("JSON: found", whole.found == cut.found and whole.too_long == cut.too_long, cut.found)
    target_same("JSON: name", text_same_exactly(whole.text, whole.length, cut.text, cut.length), cut.length)
    if whole.found:
        target_same("JSON: place", whole.from_at == cut.from_at and whole.to_at == cut.to_at, cut.from_at)
        target_same("JSON: quotes", 0 < whole.from_at <= whole.to_at < <int64_t>n and data[whole.from_at - 1] == c'"'
                    and data[whole.to_at] == c'"', whole.from_at)
    if rc[0] == RC_OK:
        target_same("JSON: a stream", whole.streams == cut.streams and whole.leave == cut.leave, cut.streams)
        target_same("JSON: its options", whole.options == cut.options, cut.options)
        target_same("JSON: where they are", whole.end_at == cut.end_at and whole.options_from == cut.options_from
                    and whole.options_to == cut.options_to, cut.options_from)
        target_same("JSON: end", json_whole(&whole) == json_whole(&cut), 0)

cdef void target_reader(const uint8_t *data, size_t n) noexcept nogil:
    # An input for one of the readers, in an allocation of its own.
    cdef uint8_t *copy
    if n > MOST_INPUT:
        n = MOST_INPUT
    sim_reset()
    copy = <uint8_t *>malloc(n)
    if copy is NULL:
        return
    if n:
        memcpy(copy, data, n)
    if target_now == TARGET_REQUEST_HEAD:
        target_request(copy, n)
    elif target_now == TARGET_RESPONSE_HEAD:
        target_response(copy, n)
    elif target_now == TARGET_JSON:
        target_json(copy, n)
    else:
        target_chunked(copy, n)
    free(copy)

# ------------------------------------------------------------------------------------------------ mutations of a script

cdef uint32_t mutate_seed

cdef uint32_t mutate_roll(uint32_t n) noexcept nogil:
    # A number below n (xorshift32, Marsaglia, 2003).
    mutate_next()
    return mutate_seed % n if n else 0

cdef void mutate_next() noexcept nogil:
    global mutate_seed
    mutate_seed ^= mutate_seed << 13
    mutate_seed ^= mutate_seed >> 17
    mutate_seed ^= mutate_seed << 5

cdef void mutate_op(uint8_t *op) noexcept nogil:
    # Another operation, mostly one that moves a conversation on.
    cdef uint8_t *usual = [OP_CONNECT, OP_CLIENT_SAY, OP_CLIENT_SAY, OP_UPSTREAM_SAY, OP_UPSTREAM_SAY, OP_BACKEND_ANSWER,
                           OP_TIME, OP_CLIENT_ROOM]
    cdef uint8_t *sizes = [0, 0, 16, 32, 112]
    op[0] = usual[mutate_roll(8)] if mutate_roll(2) else <uint8_t>mutate_roll(OP_COUNT)
    op[1] = <uint8_t>mutate_roll(4)
    op[2] = <uint8_t>mutate_roll(32 if mutate_roll(2) else 256)
    if op[0] == OP_SETTING:
        op[1] = <uint8_t>mutate_roll(16)
        op[2] = <uint8_t>(mutate_roll(64) if mutate_roll(2) else 0)
    elif op[0] == OP_CLIENT_SAY or op[0] == OP_UPSTREAM_SAY:
        op[1] |= sizes[mutate_roll(5)]
    elif op[0] == OP_BACKEND_CONNECT or op[0] == OP_BACKEND_ANSWER:
        op[1] = <uint8_t>mutate_roll(64)
    elif op[0] == OP_FAULT or op[0] == OP_FAULT_ROW:
        op[1] = <uint8_t>mutate_roll(SIM_CALLS)
    elif op[0] == OP_CLIENT_SEND or op[0] == OP_UPSTREAM_SEND:
        op[2] = 0
    elif op[0] == OP_CONNECT and mutate_roll(2):
        op[2] = 0
    if mutate_roll(8) == 0:
        op[0] |= OP_TOGETHER

cdef size_t mutate_script(uint8_t *data, size_t n, size_t most, unsigned int seed) noexcept nogil:
    # A script with an operation taken out, doubled, moved, put in, cut in two or changed; sometimes only its bytes are.
    global mutate_seed
    cdef uint8_t out[MOST_INPUT * 2]
    cdef size_t starts[MOST_OPS + 1]
    cdef size_t count = 0
    cdef size_t at = 2
    cdef size_t size
    cdef size_t one
    cdef size_t other
    cdef uint8_t op[3]
    cdef uint32_t how
    mutate_seed = seed | 1
    if target_now == TARGET_EXCHANGE and n <= MOST_INPUT and mutate_roll(16):
        return mutate_events(data, n, most)
    if target_now != TARGET_CONVERSATION or n > MOST_INPUT or mutate_roll(16) == 0:
        return LLVMFuzzerMutate(data, n, most)
    if n < 2:
        data[0] = data[1] = 0
        n = 2
    while at + 3 <= n and count < MOST_OPS:
        starts[count] = at
        count += 1
        at += 3
        if (data[starts[count - 1]] & OP_MASK) % OP_COUNT in (OP_CLIENT_SEND, OP_UPSTREAM_SEND):
            at += data[starts[count - 1] + 2]
    if at > n:
        at = n
    starts[count] = at
    how = mutate_roll(10)
    if count == 0 or how < 3:
        one = starts[mutate_roll(<uint32_t>count + 1)]
        mutate_op(op)
        if n + 3 > most:
            return n
        memmove(data + one + 3, data + one, n - one)
        memcpy(data + one, op, 3)
        return n + 3
    one = mutate_roll(<uint32_t>count)
    other = mutate_roll(<uint32_t>count + 1)
    size = starts[one + 1] - starts[one]
    if how == 3:            # out
        memmove(data + starts[one], data + starts[one + 1], n - starts[one + 1])
        return n - size
    if how == 4 or how == 5:        # doubled, elsewhere
        if n + size > most or n + size > sizeof(out):
            return n
        memcpy(out, data + starts[one], size)
        memmove(data + starts[other] + size, data + starts[other], n - starts[other])
        memcpy(data + starts[other], out, size)
        return n + size
    if how == 6:            # who
        data[starts[one] + 1] = <uint8_t>mutate_roll(4) | (data[starts[one] + 1] & 0xF0)
        return n
    if how == 7:            # how much; of bytes: cut in two
        if (data[starts[one]] & OP_MASK) % OP_COUNT not in (OP_CLIENT_SEND, OP_UPSTREAM_SEND):
            data[starts[one] + 2] = <uint8_t>mutate_roll(256)
        elif size > 4 and n + 3 <= most:
            other = 1 + mutate_roll(<uint32_t>size - 4)
            at = starts[one] + 3 + other
            memmove(data + at + 3, data + at, n - at)
            data[at] = data[starts[one]]
            data[at + 1] = data[starts[one] + 1]
            data[at + 2] = <uint8_t>(size - 3 - other)
            data[starts[one] + 2] = <uint8_t>other
            return n + 3
        return n
    if how == 8:            # settings and table
        data[mutate_roll(2)] ^= <uint8_t>(1 << mutate_roll(8))
        return n
    # Other bytes.
    if (data[starts[one]] & OP_MASK) % OP_COUNT not in (OP_CLIENT_SEND, OP_UPSTREAM_SEND) or n + 64 > most:
        return LLVMFuzzerMutate(data, n, most)
    memcpy(out, data + starts[one] + 3, size - 3)
    other = LLVMFuzzerMutate(out, size - 3, size + 61 if size + 61 < 255 else 255)
    memmove(data + starts[one] + 3 + other, data + starts[one + 1], n - starts[one + 1])
    memcpy(data + starts[one] + 3, out, other)
    data[starts[one] + 2] = <uint8_t>other
    return n - size + 3 + other

cdef int EVENT_COUNT = EVENTS

cdef size_t mutate_events(uint8_t *data, size_t n, size_t most) noexcept nogil:
    # An input of `exchange` with an event taken out, doubled elsewhere, put in or changed, or with another place, table or end.
    cdef uint8_t event[EVENT_SIZE]
    cdef uint32_t how = mutate_roll(12)
    cdef size_t count
    cdef size_t one
    cdef size_t other
    if most < EXCHANGE_HEAD + EVENT_SIZE:
        return LLVMFuzzerMutate(data, n, most)
    if n < EXCHANGE_HEAD:
        memset(data + n, 0, EXCHANGE_HEAD - n)
        n = EXCHANGE_HEAD
    if how == 0:
        data[mutate_roll(EXCHANGE_HEAD)] = <uint8_t>mutate_roll(256)
        return n
    count = (n - EXCHANGE_HEAD) // EVENT_SIZE
    n = EXCHANGE_HEAD + count * EVENT_SIZE
    one = EXCHANGE_HEAD + mutate_roll(<uint32_t>count) * EVENT_SIZE
    other = EXCHANGE_HEAD + mutate_roll(<uint32_t>count + 1) * EVENT_SIZE
    if count == 0 or (how < 8 and n + EVENT_SIZE <= most):
        event[0] = <uint8_t>mutate_roll(EVENT_COUNT) | (EVENT_TOGETHER if mutate_roll(4) == 0 else 0)
        event[1] = <uint8_t>mutate_roll(256)
        if how == 7 and count:
            memcpy(event, data + one, EVENT_SIZE)
        memmove(data + other + EVENT_SIZE, data + other, n - other)
        memcpy(data + other, event, EVENT_SIZE)
        return n + EVENT_SIZE
    if how < 10:            # out
        memmove(data + one, data + one + EVENT_SIZE, n - one - EVENT_SIZE)
        return n - EVENT_SIZE
    if how == 10:           # at once with the next, or not
        data[one] ^= EVENT_TOGETHER
    else:
        data[one + 1] = <uint8_t>mutate_roll(256)
    return n

# ------------------------------------------------------------------------------------------------------------ to Python

cdef object fuzz_judge = None


cdef int fuzz_one(const uint8_t *data, size_t n) noexcept:
    sim.aborts = True
    if target_now == TARGET_CONVERSATION or target_now == TARGET_EXCHANGE:
        script = (<const char *>data)[:n] if n else b""
        try:
            if target_now == TARGET_CONVERSATION:
                fuzz_judge(run(script, aborts=True), script)
            else:
                fuzz_judge(*run_exchange(script, aborts=True))
        except BaseException:
            # libFuzzer writes the input of a process that aborts, and nothing else stops it.
            traceback.print_exc()
            abort()
    else:
        target_reader(data, n)
    return 0


def check(str target not None, bytes data not None):
    """Runs one input of a target; an AssertionError says which rule it breaks."""
    global target_now
    target_now = TARGETS.index(target)
    if target_now == TARGET_CONVERSATION:
        run(data)
        return
    if target_now == TARGET_EXCHANGE:
        run_exchange(data)
        return
    sim.aborts = False
    target_reader(data, len(data))
    if sim.failure[0]:
        raise AssertionError(sim.failure.decode())


def fuzz(str target not None, list arguments not None, judge not None):
    """Fuzzes until libFuzzer ends the process; the flavour `fuzz` only. The first argument is the program that does this, which
    libFuzzer runs again for each part of a merge; its options follow. `judge` is given what run() gave for a script, and the
    script, and raises what it finds wrong.
    """
    global target_now, fuzz_mutator, fuzz_judge
    cdef list kept = [argument.encode() for argument in arguments]
    cdef char **argv = <char **>malloc((len(kept) + 1) * sizeof(char *))
    cdef int argc = len(kept)
    cdef int i
    if argv is NULL:
        raise MemoryError
    for i in range(argc):
        argv[i] = <char *>kept[i]
    argv[argc] = NULL
    target_now = TARGETS.index(target)
    fuzz_mutator = mutate_script
    fuzz_judge = judge
    return LLVMFuzzerRunDriver(&argc, &argv, fuzz_one)
