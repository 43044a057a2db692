# fleet: several engines and their control plane in one world, as the threads of one process (fibers.h).
#
# Each engine's loop runs on a stack of its own. At each system call and each word that they share, dice decide whether it goes
# on, or another engine, or the control plane, which takes the records as runner.py does: where an eventfd says so, and now
# and then without. With half of the seeds who gave way is patient and waits until all others sleep, so that much happens
# between two steps of one engine. Clients and backends act where all of them sleep, as with one engine.

cdef extern from "fibers.h" nogil:
    cdef struct fiber:
        pass
    int fiber_make(fiber *made, void (*run)() noexcept nogil)
    void fiber_switch(fiber *left, fiber *entered)
    void fiber_free(fiber *freed)

cdef struct FleetC:
    fiber control
    fiber engines[MOST_WORLD_WORKERS]
    bint done[MOST_WORLD_WORKERS]
    bint asleep[MOST_WORLD_WORKERS]
    int64_t until[MOST_WORLD_WORKERS]       # when it wants to be woken at the latest, -1 for never
    int rc[MOST_WORLD_WORKERS]
    int current                 # the engine that goes on, -1 for the control plane
    bint gives_way              # the control plane does something that engines may come between
    bint drains                 # it waits for the end of accepting, to tell them to drain
    bint active
    uint32_t seed
    uint32_t pause              # one step in so many gives way; 0 is none
    uint64_t switches
    bint patient                # who gave way goes on when all others sleep, and not before
    int ranks[MOST_WORLD_WORKERS]           # then the lowest goes on
    int last_rank

cdef FleetC fleet

cdef uint32_t fleet_roll(uint32_t n) noexcept nogil:
    # A number below n (xorshift32, Marsaglia, 2003).
    fleet.seed ^= fleet.seed << 13
    fleet.seed ^= fleet.seed >> 17
    fleet.seed ^= fleet.seed << 5
    return fleet.seed % n

cdef bint fleet_runs(int i) noexcept nogil:
    # Whether an engine can go on: it does not sleep, or something woke it.
    if fleet.done[i]:
        return False
    return not fleet.asleep[i] or sim_ready(world.workers[i].epfd) or 0 <= fleet.until[i] <= sim.now

cdef int fleet_choose() noexcept nogil:
    # An engine that can go on, -1 where none can.
    cdef int count = 0
    cdef int best = -1
    cdef int i
    if fleet.patient:
        for i in range(world.worker_count):
            if fleet_runs(i) and (best < 0 or fleet.ranks[i] < fleet.ranks[best]):
                best = i
        return best
    for i in range(world.worker_count):
        count += fleet_runs(i)
    if not count:
        return -1
    count = <int>fleet_roll(<uint32_t>count)
    for i in range(world.worker_count):
        if fleet_runs(i):
            if count == 0:
                return i
            count -= 1
    return -1

cdef void fleet_resume(int i) noexcept nogil:
    # An engine goes on, until it gives way, sleeps or ends.
    fleet.asleep[i] = False
    fleet.current = i
    fleet.switches += 1
    sim.work = 0
    fiber_switch(&fleet.control, &fleet.engines[i])
    fleet.current = -1

cdef void fleet_leave() noexcept nogil:
    fiber_switch(&fleet.engines[fleet.current], &fleet.control)

cdef void fleet_step() noexcept nogil:
    # A system call begins, or a shared word is touched.
    cdef int other
    if not fleet.active or not fleet.pause or fleet_roll(fleet.pause):
        return
    if fleet.current >= 0:
        fleet.last_rank += 1
        fleet.ranks[fleet.current] = fleet.last_rank
        fleet_leave()
    elif fleet.gives_way:
        while True:
            other = fleet_choose()
            if other < 0:
                break
            fleet_resume(other)
            if not fleet.patient:
                break

cdef int fleet_sleep(int64_t until) noexcept nogil:
    # What the kernel asks where an engine finds nothing: as world_idle().
    fleet.asleep[fleet.current] = True
    fleet.until[fleet.current] = until
    fleet_leave()
    return until < 0 or sim.now < until

cdef void fleet_run_engine() noexcept nogil:
    cdef int i = fleet.current
    fleet.rc[i] = loop_run(world.workers[i])
    fleet.done[i] = True
    while True:
        fleet_leave()

cdef void fleet_tell(uint32_t command, int i) noexcept nogil:
    mail_command(&world.workers[i].mail, command)

cdef void fleet_drain() noexcept nogil:
    # As server.py does: accepting ends, and then, when the first engine says that it has, all drain.
    if not sys_load_acquire(&world.worker.mail.closed):
        fleet_tell(COMMAND_END_LISTENING, 0)
    fleet.drains = True

cdef void fleet_drain_now() noexcept nogil:
    cdef int i
    if fleet.drains and (sys_load_acquire(&world.worker.mail.closed) or fleet.done[0]):
        fleet.drains = False
        for i in range(world.worker_count):
            fleet_tell(COMMAND_DRAIN, i)

cdef bint fleet_woken(int i) noexcept nogil:
    # Whether the control plane was woken for an engine's records.
    return sim.ends[world.workers[i].mail.out_fd - SIM_FIRST].count > 0

cdef void fleet_check_mail(WorkerC *w) noexcept nogil:
    # All sleep: nothing may lie in a mailbox, nor a record that the control plane is to be woken for.
    cdef uint32_t at = w.mail.out_head
    cdef RecordC *record
    if w.mail.in_head != w.mail.in_tail:
        sim_fail("it lies in a mailbox, and nobody was woken", "clients", w.mail.in_tail - w.mail.in_head)
    if w.new_table is not NULL or w.new_listener is not NULL:
        sim_fail("it was not taken, and nobody was woken", "a table, or a listener", 0)
    if w.mail.commands:
        sim_fail("they were not taken, and nobody was woken", "commands", w.mail.commands)
    while at != w.mail.out_tail:
        record = &w.mail.records[at & (MAIL_OUT - 1)]
        if record.kind != RECORD_EXCHANGE or (record.outcome == OUTCOME_CLIENT_ABORT and w.mail.wake_on_abort):
            sim_fail("it waits, and the control plane was not woken", "a record of kind", record.kind)
        at += 1

cdef int fleet_rest() noexcept nogil:
    # All sleep: clients and backends act, or the time comes that the first of them waits for. False where all have ended.
    cdef int64_t until = -1
    cdef int live = 0
    cdef int i
    for i in range(world.worker_count):
        if fleet.done[i]:
            continue
        live += 1
        if world.checks:
            fleet_check_mail(world.workers[i])
        if fleet.until[i] >= 0 and (until < 0 or fleet.until[i] < until):
            until = fleet.until[i]
    if not live:
        return False
    world_idle(until)
    if world.stage > 3:
        for i in range(world.worker_count):     # it was told to stop, and sleeps: it said so, and has failed
            fleet.asleep[i] = False
            world.workers[i].stopping = True
    return True


cdef class _Records:
    """What the control plane was told: each record, which engine, and when it ended."""

    cdef list engines
    cdef list records
    cdef list ended
    cdef list workers
    cdef int idle               # times in a row that it was woken and found nothing, and would be woken again

    def __cinit__(self, list engines):
        self.engines = engines
        self.records = []
        self.ended = []
        self.workers = []

    cdef take(self, int i):
        cdef list records
        fleet.gives_way = True
        records = (<Engine>self.engines[i]).take_records()
        fleet.gives_way = False
        if fleet_woken(i) and not records:
            self.idle += 1
            if self.idle > 1000:
                sim_fail("it is woken again and again", "the control plane, for engine", i)
                sim.ends[world.workers[i].mail.out_fd - SIM_FIRST].count = 0
        else:
            self.idle = 0
        self.records += records
        self.ended += _ends_of(records)
        self.workers += [i] * len(records)


def run_fleet(bytes script not None, int workers, uint32_t seed, uint32_t pause, bint aborts=False):
    """Runs a script with several engines; one step in `pause` gives way to another, by the dice of `seed`. As run(), with lists
    of stats by engine (`fleet`), and how often another engine went on (`switches`).
    """
    cdef list engines = [Engine.__new__(Engine) for _ in range(workers)]
    cdef Engine engine
    cdef _Records taken = _Records(engines)
    cdef int i
    cdef int chosen
    _world_clear(script)
    memset(&fleet, 0, sizeof(fleet))
    sim.aborts = aborts
    sim.idle = fleet_sleep
    sim.step = fleet_step
    fleet.current = -1
    fleet.seed = seed | 1 << 30     # zeros stay zeros
    for i in range(16):
        fleet_roll(2)               # small seeds are alike at first
    fleet.patient = fleet_roll(2)
    fleet.last_rank = workers
    for i in range(workers):
        fleet.ranks[i] = <int>fleet_roll(<uint32_t>workers)
    fleet.pause = pause
    settings = _SETTINGS[world.script[0] & 127 if world.n else 0]
    listener = sim_open(END_LISTENER)
    for i, engine in enumerate(engines):
        engine.__init__(settings, engines[0] if i else None)
        engine.wake_on_abort = seed & 1
        world.workers[i] = engine.w
        world.worker_count += 1
        if fiber_make(&fleet.engines[i], fleet_run_engine) < 0:
            raise MemoryError
    world.worker = world.workers[0]
    (<Engine>engines[0]).listen([listener], engines, most=1000, resume_at=900, **_limits())
    world_table(world.script[1] if world.n > 1 else 0, 0)
    world.at = 2
    fleet.active = True
    for engine in engines:
        engine.started = True
    while True:
        fleet_drain_now()
        woken = [i for i in range(workers) if fleet_woken(i)]
        chosen = fleet_choose()
        if woken and (chosen < 0 or fleet_roll(3) == 0):
            taken.take(woken[fleet_roll(<uint32_t>len(woken))])
        elif chosen >= 0:
            fleet_resume(chosen)
        elif not fleet_rest():
            break
        elif fleet_roll(8) == 0:
            for i in range(workers):
                taken.take(i)
    fleet.active = False
    trace_requests()
    for i in range(workers):
        world.worker = world.workers[i]
        world_check_engine_end()
        taken.take(i)
    stats = [engine.stats() for engine in engines]
    for engine in engines:
        engine.close()
    for i in range(workers):
        fiber_free(&fleet.engines[i])
    sim.step = NULL
    world_check_closed()
    outcomes = {name: sum(one["outcomes"][i] for one in stats) for i, name in enumerate(OUTCOMES)}
    records = sum(isinstance(record, ExchangeEnded) for record in taken.records)
    dropped = sum(one["records_dropped"] for one in stats)
    if not records <= sum(outcomes.values()) <= records + dropped:
        sim_fail("counted wrongly", "records of exchanges", records)
    result = {
        "failed": None, "settings": settings,
        "stats": {"retries": [sum(one["retries"][i] for one in stats) for i in range(RETRY_COUNT)]},
        "fleet": stats,
        "outcomes": {name: n for name, n in outcomes.items() if n}, "records": taken.records, "ended": taken.ended,
        "workers": taken.workers, "trace": trace_list(), "clients": _ends(END_CLIENT), "upstreams": _ends(END_UPSTREAM),
        "client_traces": _traces(END_CLIENT), "upstream_traces": _traces(END_UPSTREAM), "accounted": world.accounted,
        "injected": sim.injected, "listing": LISTING, "switches": fleet.switches, "rc": [fleet.rc[i] for i in range(workers)],
    }
    if sim.failure[0]:
        raise AssertionError(sim.failure.decode())
    return result
