# balance: the choice of a backend by itself: a pool, without sockets and with a clock that is told.

from llmpipe.routing import Member as _Member, Pool as _Pool, Routing as _Routing

cdef class Balance:
    """A pool of backends, each (weight, tier, most exchanges in flight, 0 for no limit)."""

    cdef Engine engine
    cdef int64_t now
    cdef public list in_flight
    """By backend, as this object counts."""

    def __init__(self, list backends, str policy="least_in_flight", double slow_start=0.0, double cold_timeout=0.0, int most=0):
        settings = copy(_SETTINGS[0])
        settings.policy = policy
        settings.slow_start = slow_start
        settings.cold_timeout = cold_timeout
        settings.max_in_flight = most
        _world_clear(b"")
        self.now = 1000000000
        self.in_flight = [0] * len(backends)
        self.engine = Engine(settings)
        routes = [(b"b%d" % i, b"b", b"", [("127.0.0.1", 1 + i)], False, own, b"") for i, (_, _, own) in enumerate(backends)]
        members = [_Member(i, weight, tier) for i, (weight, tier, _) in enumerate(backends)]
        self.engine.configure(routes, _Routing([_Pool(b"", members)]))
        table_release(self.engine.w.table)
        self.engine.w.table = <TableC *>sys_exchange_pointer(&self.engine.w.new_table, NULL)

    cdef BackendC *backend(self, int i):
        cdef TableC *table = self.engine.w.table
        return table.routes[table.pools[0].members[i].slot].backend

    def begin(self, tried=()):
        """An exchange begins: the backend, or None where there is none, or "wait"."""
        cdef uint64_t words[MAX_MEMBER_WORDS]
        cdef int i
        memset(words, 0, sizeof(words))
        for i in tried:
            member_put(words, i)
        i = pool_reserve(self.engine.w.table, &self.engine.w.table.pools[0], words, self.now)
        if i < 0:
            return None if i == MEMBER_NONE else "wait"
        self.in_flight[i] += 1
        return i

    def end(self, int i):
        """One of its exchanges ends."""
        self.in_flight[i] -= 1
        sys_add_shared(&self.backend(i).in_flight, <uint32_t>-1)

    def counts(self):
        """Exchanges in flight by backend, as the engine counts."""
        return [self.backend(i).in_flight for i in range(len(self.in_flight))]

    def wait(self, double seconds):
        self.now += <int64_t>(seconds * 1e6)

    def fail(self, int i):
        backend_eject(self.backend(i), self.now)

    def connect(self, int i):
        backend_connected(self.backend(i))

    def answer(self, int i):
        backend_recover(self.backend(i), self.now)

    def first_token(self, int i, double seconds):
        backend_note_ttft(self.backend(i), self.now, <int64_t>(seconds * 1e6))

    def mark(self, int i, bint down):
        self.backend(i).down = down

    def drain(self, int i, bint on):
        self.backend(i).drained = on

    def close(self):
        for i in range(len(self.in_flight)):
            while self.in_flight[i]:
                self.end(i)
        self.engine.close()
