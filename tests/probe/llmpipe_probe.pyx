# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The engine's readers, opened to tests and fuzzers: the same parts as the product's, with no hook in the product.

Every input is copied to the end of a page that is followed by one that may not be read, so that one byte too far is a
crash. It may not do anything that the engine does not do; it only shows what the parts return.
"""

include "_pipe/sys.pxi"
include "_pipe/rc.pxi"
include "_pipe/outcome.pxi"
include "_pipe/text.pxi"
include "_pipe/head.pxi"
include "_pipe/forward.pxi"
include "_pipe/chunk.pxi"
include "_pipe/member.pxi"
include "_pipe/json.pxi"
include "_pipe/sse.pxi"
include "_pipe/find.pxi"
include "_pipe/usage.pxi"
include "_pipe/sieve.pxi"
include "_pipe/histogram.pxi"
include "_pipe/buf.pxi"
include "_pipe/io.pxi"
include "_pipe/trust.pxi"
include "_pipe/quota.pxi"

cdef extern from "<sys/mman.h>" nogil:
    int PROT_NONE
    int mprotect(void *at, size_t n, int protection)

text_init()

FRAMINGS = ("none", "length", "chunked", "close")


cdef class Guarded:
    """Bytes whose last one touches a page that may not be read."""

    cdef uint8_t *pages
    cdef size_t size
    cdef uint8_t *data
    cdef Py_ssize_t n

    def __cinit__(self, bytes data not None):
        self.n = len(data)
        self.size = ((self.n + 4095) // 4096 + 1) * 4096
        self.pages = <uint8_t *>mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if self.pages == MAP_FAILED:
            self.pages = NULL
            raise MemoryError
        mprotect(self.pages + self.size - 4096, 4096, PROT_NONE)
        self.data = self.pages + self.size - 4096 - self.n
        memcpy(self.data, <const char *>data, self.n)

    def __dealloc__(self):
        if self.pages is not NULL:
            munmap(self.pages, self.size)


cdef bytes _bytes(const uint8_t *p, size_t n):
    return (<const char *>p)[:n] if n else b""


cdef list _fields(HeadC *head):
    cdef int i
    return [(_bytes(head.fields[i].line, head.fields[i].name_length),
             _bytes(head.fields[i].value, head.fields[i].value_length)) for i in range(head.count)]


cdef class _HeadReader:
    """Scans every byte once, however the bytes come, and reads the head when it is whole."""

    cdef HeadC *head
    cdef bytes got
    cdef uint32_t scanned
    cdef bint skipped_line
    cdef size_t max_request_line
    cdef size_t max_head
    cdef int max_fields
    cdef bytes method
    cdef uint8_t reason

    def __cinit__(self, *, bytes method=None, size_t max_request_line=8192, size_t max_head=32768, int max_fields=128):
        self.head = <HeadC *>calloc(1, sizeof(HeadC))
        if self.head is NULL:
            raise MemoryError
        self.got = b""
        self.method = method
        self.max_request_line = max_request_line
        self.max_head = max_head
        self.max_fields = max_fields

    def __dealloc__(self):
        free(self.head)

    @property
    def why(self):
        """Why the last feed refused the head; the limits of its length are the engine's business."""
        return REASONS[self.reason]

    def feed(self, bytes data not None):
        cdef size_t length = 0
        cdef int rc
        self.got += data
        guarded = Guarded(self.got)
        rc = head_scan((<Guarded>guarded).data, (<Guarded>guarded).n, &self.scanned, &length)
        if rc == RC_OK and self.method is None and not self.skipped_line:
            # The empty line that may stand before a request, taken off as the engine's step_head does.
            self.skipped_line = True
            self.scanned = 0
            rest = self.got[2:]
            self.got = b""
            return self.feed(rest)
        self.reason = REASON_NONE
        if rc == RC_BAD or rc == RC_OK:
            self.reason = head_scan_fault((<Guarded>guarded).data, (<Guarded>guarded).n)
            return ("bad", 400, None)
        if rc == RC_DONE and length <= self.max_head:
            return self._read((<Guarded>guarded).data, length)
        if <size_t>len(self.got) > self.max_request_line and b"\n" not in self.got[:self.max_request_line + 2]:
            return ("bad", 414, None)
        if rc == RC_DONE or <size_t>len(self.got) >= self.max_head:
            return ("bad", 431, None)
        return ("again", 0, None)

    cdef _read(self, const uint8_t *data, size_t length):
        cdef HeadC *head = self.head
        cdef int status
        if self.method is None:
            status = head_read_request(head, data, length, self.max_request_line, self.max_fields)
            self.reason = head.fault
            if status != RC_OK:
                return ("bad", status, None)
            target = _bytes(head.target, head.target_length)
            method = _bytes(head.method, head.method_length)
            if head.bare:
                target = b"*" if method == b"OPTIONS" and not target else b"/" + target
            return ("ok", length, {
                "method": method,
                "target": target,
                "authority": _bytes(head.authority, head.authority_length),
                "version": (1, head.minor),
                "fields": _fields(head),
                "framing": FRAMINGS[head.framing],
                "length": max(head.content_length, 0),
                "keep_alive": bool(head.keep_alive),
                "expect": bool(head.expects),
                "upgrade": bool(head.has_upgrade),
            })
        if head_read_response(head, data, length, self.max_fields, self.method == b"HEAD") != RC_OK:
            self.reason = head.fault
            return ("bad", 502, None)
        return ("ok", length, {
            "status": head.status,
            "version": (1, head.minor),
            "fields": _fields(head),
            "framing": FRAMINGS[head.framing],
            "length": max(head.content_length, 0),
            "keep_alive": bool(head.keep_alive),
        })


def RequestReader(**limits):
    """Feed it a request's bytes: ("again" | "bad" | "ok", head length or status, what was read)."""
    return _HeadReader(**limits)


def ResponseReader(method=b"GET", max_head=65536, max_fields=512):
    """The same for a response to a request with this method."""
    return _HeadReader(method=method, max_head=max_head, max_fields=max_fields)


def parse_request(data, max_request_line=8192, max_head=32768, max_fields=128):
    return RequestReader(max_request_line=max_request_line, max_head=max_head, max_fields=max_fields).feed(data)


def parse_response(data, method=b"GET", max_head=65536, max_fields=512):
    return ResponseReader(method, max_head=max_head, max_fields=max_fields).feed(data)


cdef class ChunkReader:
    """Follows the chunked framing: ("again" | "done" | "bad", bytes consumed, data of the chunks)."""

    cdef ChunkC chunk

    def __cinit__(self):
        memset(&self.chunk, 0, sizeof(ChunkC))

    @property
    def why(self):
        """Why the last feed refused what it met."""
        return REASONS[chunk_fault(&self.chunk)]

    def feed(self, bytes data not None):
        cdef const uint8_t *body = NULL
        cdef size_t length = 0
        cdef size_t consumed = 0
        cdef int rc
        cdef list parts = []
        guarded = Guarded(data)
        while True:
            rc = chunk_next(&self.chunk, (<Guarded>guarded).data, (<Guarded>guarded).n, &consumed, &body, &length)
            if rc != RC_OK:
                break
            parts.append(_bytes(body, length))
        return ({RC_AGAIN: "again", RC_DONE: "done", RC_BAD: "bad"}[rc], consumed, b"".join(parts))


cdef class SseScanner:
    """Follows an event stream: (whether it held content, whether it ends between two events)."""

    cdef uint8_t state

    def __cinit__(self):
        self.state = SSE_EVENT_START

    def feed(self, bytes data not None):
        guarded = Guarded(data)
        content = sse_follow(&self.state, (<Guarded>guarded).data, (<Guarded>guarded).n)
        return bool(content), self.state == SSE_EVENT_START


def find(bytes data not None):
    """Where the first g stands with a quote two bytes behind it; -1 for nowhere. Nothing behind the bytes may be read."""
    cdef Guarded guarded = Guarded(data)
    cdef const uint8_t *found = find_apart(guarded.data, guarded.data + guarded.n)
    return found - guarded.data if found is not NULL else -1


def read_usage(pieces):
    """(prompt, completion, cached) tokens that an answer tells which comes in these pieces, each None where it does not."""
    cdef UsageC usage
    cdef Guarded guarded
    cdef int64_t prompt, completion, cached
    cdef bint began = False
    memset(&usage, 0, sizeof(usage))
    for piece in pieces:
        guarded = Guarded(piece)
        if guarded.n and (began or usage_begins(guarded.data, guarded.n)):
            began = True
            usage_read(&usage, guarded.data, guarded.n)
    usage_total(&usage, &prompt, &completion, &cached)
    return tuple(n if n >= 0 else None for n in (prompt, completion, cached))


def sift(pieces):
    """(what goes on of each piece of an event stream, how much of it was taken out, what is still held)."""
    cdef SieveC sieve
    cdef Guarded guarded
    cdef uint8_t *room
    cdef size_t dropped = 0
    cdef size_t out
    found = []
    memset(&sieve, 0, sizeof(sieve))
    for piece in pieces:
        guarded = Guarded(piece)
        # Into the same bytes where that is allowed.
        room = <uint8_t *>malloc(guarded.n + SIEVE_ROOM)
        if sieve.held:
            out = sieve_take(&sieve, guarded.data, guarded.n, room, &dropped)
        else:
            memcpy(room, guarded.data, guarded.n)
            out = sieve_take(&sieve, room, guarded.n, room, &dropped)
        found.append(_bytes(room, out))
        free(room)
    return found, dropped, _bytes(sieve.data, sieve.held)


def histogram_place(value, int bits):
    """(which count is that of a value, the least value there, the least of the next one)."""
    cdef size_t at = histogram_at(value, bits)
    return at, histogram_low(at, bits), histogram_low(at + 1, bits)


cdef class JsonReader:
    """Follows a request's JSON: False where it was refused."""

    cdef JsonC json

    def __cinit__(self, bint guessed=False):
        memset(&self.json, 0, sizeof(JsonC))
        self.json.guessed = guessed

    def feed(self, bytes data not None):
        guarded = Guarded(data)
        return json_scan(&self.json, (<Guarded>guarded).data, (<Guarded>guarded).n) == RC_OK

    @property
    def model(self):
        """The model, where its name is whole; None where not, or where it is longer than any name."""
        return _bytes(self.json.text, self.json.length) if self.json.found and not self.json.too_long else None

    @property
    def place(self):
        """Where the name stands, between its quotes; None where it does not."""
        return (self.json.from_at, self.json.to_at) if self.json.found else None

    @property
    def whole(self):
        """Whether nothing lacks."""
        return bool(json_whole(&self.json))

    @property
    def other(self):
        """Whether it is something else than an object, which it need not be."""
        return self.json.state == JSON_OTHER

    @property
    def why(self):
        """Why it was refused."""
        return REASONS[self.json.fault]


cdef bytes _written(WriterC *out):
    if out.full:
        raise OverflowError("the head does not fit")
    return _bytes(out.data, out.used)


def rewrite_request(data, bytes client=b"127.0.0.1", bytes authority=b"backend:1", bytes request_id=b"", bint trusted=True):
    """The head that the backend gets for the request head `data` of a peer that is trusted or not."""
    cdef uint8_t room[65536]
    cdef WriterC out
    reader = <_HeadReader>RequestReader()
    guarded = Guarded(data)
    length = data.index(b"\r\n\r\n") + 4
    status = head_read_request(reader.head, (<Guarded>guarded).data, length, 8192, 128)
    if status != RC_OK:
        raise ValueError(status)
    write_start(&out, room, sizeof(room))
    head_write_request(&out, reader.head, client, trusted, authority, request_id, len(request_id))
    return _written(&out)


def rewrite_response(data, bytes method=b"GET", version=(1, 1), bint close=False, bytes request_id=b"x"):
    """The head that the client gets for the response head `data`."""
    cdef uint8_t room[65536]
    cdef WriterC out
    cdef const char *connection = NULL
    reader = <_HeadReader>ResponseReader(method)
    guarded = Guarded(data)
    length = data.index(b"\r\n\r\n") + 4
    if head_read_response(reader.head, (<Guarded>guarded).data, length, 512, method == b"HEAD") != RC_OK:
        raise ValueError(502)
    if close:
        connection = b"close"
    write_start(&out, room, sizeof(room))
    head_write_response(&out, reader.head, version >= (1, 1), connection, request_id, len(request_id))
    return _written(&out)


def origin(data, networks):
    """The client that the request head `data` names, as one of the trusted `networks` of (packed address, bits) would; empty for
    none.
    """
    cdef TrustC trust
    cdef HostC found
    cdef char text[46]
    reader = <_HeadReader>RequestReader()
    guarded = Guarded(data)
    status = head_read_request(reader.head, (<Guarded>guarded).data, data.index(b"\r\n\r\n") + 4, 8192, 128)
    if status != RC_OK:
        raise ValueError(status)
    memset(&trust, 0, sizeof(trust))
    memset(&found, 0, sizeof(found))
    for packed, bits in networks:
        host_set(&trust.networks[trust.count].host, <const uint8_t *><const char *><bytes>packed, len(packed))
        trust.networks[trust.count].bits = bits + 128 - len(packed) * 8
        trust.count += 1
    trust_origin(&trust, reader.head, &found)
    if not host_known(&found):
        return b""
    host_text(&found, text, sizeof(text))
    return <bytes>text


cdef class Quotas:
    """The table of client addresses, used as the worker that accepts uses it."""

    cdef QuotaTableC *table

    def __cinit__(self):
        self.table = <QuotaTableC *>calloc(1, sizeof(QuotaTableC))
        if self.table is NULL:
            raise MemoryError
        self.table.entries.size = sizeof(QuotaC)
        self.table.seed = 0x5EED

    def __dealloc__(self):
        if self.table is not NULL:
            slab_free_all(&self.table.entries)
            free(self.table)

    cdef QuotaC *_find(self, str host) except NULL:
        cdef AddressC address
        cdef uint64_t key[2]
        key[0] = key[1] = 0
        memset(&address, 0, sizeof(address))
        if io_address(&address, host.encode(), 1) != RC_OK or not quota_key(&address.address, key):
            raise ValueError(host)
        return quota_find(self.table, key)

    def take(self, str host):
        """Counts one more connection of the address; how many it has."""
        cdef QuotaC *quota = self._find(host)
        sys_add_shared(&quota.served, 1)
        return quota.served

    def give(self, str host):
        """Counts one less."""
        sys_add_shared(&self._find(host).served, <uint32_t>-1)

    @property
    def entries(self):
        """Entries in the table, those that count nothing included."""
        cdef int i
        cdef int count = 0
        cdef QuotaC *quota
        for i in range(QUOTA_BUCKETS):
            quota = self.table.buckets[i]
            while quota is not NULL:
                count += 1
                quota = quota.next
        return count
