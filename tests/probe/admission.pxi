# admission: many clients at few places, on the simulated kernel's clock: what a queue does with more than can be served.
#
# Each request comes at a time of its own, on a connection that is free, and says how long its backend works on it. What is in the
# way between them is the engine; no second of it is slept.

cdef enum:
    MOST_JOBS = 20000

cdef struct JobC:
    int64_t comes               # us from the beginning
    int64_t leaves              # the same: its client closes the connection then, where it has no answer; 0 is never
    int64_t works               # us
    int64_t sent                # when it reached its backend; 0 for never
    int64_t answered            # when the head of its answer was there
    int64_t again               # ms of its Retry-After
    int64_t ahead               # how many waited when it came
    const char *head
    size_t head_length
    int status
    int client                  # its connection's place in sim.ends

cdef struct BusyC:
    int64_t until
    int job
    int upstream

cdef struct AdmissionC:
    JobC *jobs
    int count
    int next
    int open                    # that have come, and are not answered
    BusyC busy[512]             # what backends work on
    int busy_count
    int idle[512]               # places of connections that wait for a request
    int idle_count
    size_t looked[512]          # SIM_ENDS of them: bytes of `told` that were read
    int job_of[512]             # of a client's connection, -1 for none
    int64_t begun
    WorkerC *w
    int most_waiting

cdef AdmissionC admission
cdef int64_t field_number(const uint8_t *data, size_t n, const char *name) noexcept nogil:
    # The number in a field; -1 where it is not there.
    cdef const uint8_t *found = <const uint8_t *>memmem(data, n, name, strlen(name))
    cdef int64_t value = 0
    if found is NULL:
        return -1
    found += strlen(name)
    while c"0" <= found[0] <= c"9":
        value = value * 10 + found[0] - c"0"
        found += 1
    return value

cdef void admission_read(int at) noexcept nogil:
    # What the engine has sent to a peer since.
    cdef sim_end *end = &sim.ends[at]
    cdef const uint8_t *data = end.told.data + admission.looked[at]
    cdef size_t n = end.told.n - admission.looked[at]
    cdef JobC *job
    cdef int64_t number
    if end.kind == END_UPSTREAM and memmem(data, n, b"\r\n\r\n", 4) is not NULL:
        number = field_number(data, n, b"GET /j-")
        job = &admission.jobs[number]
        if job.sent:
            sim_fail("sent twice", "job", number)
        job.sent = sim.now - admission.begun
        admission.busy[admission.busy_count].until = sim.now + job.works
        admission.busy[admission.busy_count].job = <int>number
        admission.busy[admission.busy_count].upstream = at
        admission.busy_count += 1
        admission.looked[at] = end.told.n
    elif end.kind == END_CLIENT and memmem(data, n, b"\r\n\r\n", 4) is not NULL and admission.job_of[at] >= 0:
        job = &admission.jobs[admission.job_of[at]]
        job.status = <int>field_number(data, n, b"HTTP/1.1 ")
        job.answered = sim.now - admission.begun
        job.again = field_number(data, n, b"retry-after-ms: ")
        admission.job_of[at] = -1
        admission.looked[at] = end.told.n
        admission.idle[admission.idle_count] = at
        admission.idle_count += 1
        admission.open -= 1

cdef void admission_come(JobC *job) noexcept nogil:
    # Its request is sent.
    cdef sim_end *end
    cdef PoolStateC *state = admission.w.shared.pools
    if admission.idle_count:
        admission.idle_count -= 1
        end = &sim.ends[admission.idle[admission.idle_count]]
    else:
        end = sim_arrive(SIM_UNLIMITED)
        if end is NULL:
            sim_fail("too many at a time", "jobs", admission.open)
            return
    job.client = <int>(end - sim.ends)
    job.ahead = state.queue.waiting
    if job.ahead > admission.most_waiting:
        admission.most_waiting = <int>job.ahead
    admission.job_of[job.client] = <int>(job - admission.jobs)
    admission.open += 1
    sim_feed(end, job.head, job.head_length)

cdef int admission_idle(int64_t until) noexcept nogil:
    # The engine sleeps: the next thing happens.
    cdef int64_t at = -1
    cdef int done = -1
    cdef int leaver = -1
    cdef JobC *job
    cdef int i
    for i in range(sim.count):
        if sim.ends[i].told.n > admission.looked[i] and (sim.ends[i].kind == END_UPSTREAM or sim.ends[i].kind == END_CLIENT):
            admission_read(i)
    if sim.failure[0] or (admission.next == admission.count and not admission.open):
        mail_command(&admission.w.mail, COMMAND_STOP)
        return 1
    if admission.next < admission.count:
        at = admission.begun + admission.jobs[admission.next].comes
    for i in range(admission.busy_count):
        if at < 0 or admission.busy[i].until <= at:
            at = admission.busy[i].until
            done = i
    for i in range(sim.count):
        if sim.ends[i].kind == END_CLIENT and admission.job_of[i] >= 0:
            job = &admission.jobs[admission.job_of[i]]
            if job.leaves and (at < 0 or admission.begun + job.leaves <= at):
                at = admission.begun + job.leaves
                leaver = i
    if until >= 0 and (at < 0 or until < at):
        if until > sim.now:
            sim.now = until
        return 0
    if at < 0:
        sim_fail("it waits for ever", "jobs", admission.open)
        return 1
    if at > sim.now:
        sim.now = at
    if leaver >= 0:
        admission.jobs[admission.job_of[leaver]].status = 499
        admission.jobs[admission.job_of[leaver]].answered = sim.now - admission.begun
        admission.job_of[leaver] = -1
        admission.open -= 1
        sim_feed_fin(&sim.ends[leaver])
    elif done >= 0:
        sim_feed(&sim.ends[admission.busy[done].upstream], b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 40)
        admission.busy_count -= 1
        admission.busy[done] = admission.busy[admission.busy_count]
    else:
        job = &admission.jobs[admission.next]
        admission.next += 1
        admission_come(job)
    return 1


Job = namedtuple("Job", "comes sent answered status again ahead")
Job.__doc__ = """What became of a request: when it came, was sent to its backend (0 for never) and was answered, in seconds from the
beginning; the status, its Retry-After in seconds or None, and how many waited when it came."""


def run_admission(jobs, int places=4, int queue_size=256, double queue_timeout=30.0, int backends=1):
    """Runs requests through an engine whose backends have so many places each. A job is (seconds from the beginning, seconds that its
    backend works on it, fields of its head, seconds after which its client leaves, or 0), in the order in which they come. What became
    of each, and the most that waited."""
    cdef Engine engine = Engine.__new__(Engine)
    cdef int listener
    cdef int i
    cdef JobC *job
    cdef list heads = [b"GET /j-%d HTTP/1.1\r\nHost: a\r\n%b\r\n" % (i, fields) for i, (_, _, fields, _) in enumerate(jobs)]
    _world_clear(b"\0\0")
    memset(&admission, 0, sizeof(admission))
    if len(jobs) > MOST_JOBS:
        raise ValueError("too many jobs")
    admission.jobs = <JobC *>calloc(len(jobs), sizeof(JobC))
    for i, (comes, works, _, leaves) in enumerate(jobs):
        admission.jobs[i].head = heads[i]
        admission.jobs[i].head_length = len(heads[i])
        admission.jobs[i].comes = <int64_t>(comes * 1e6)
        admission.jobs[i].leaves = <int64_t>((comes + leaves) * 1e6) if leaves else 0
        admission.jobs[i].works = <int64_t>(works * 1e6)
    admission.count = len(jobs)
    for i in range(512):
        admission.job_of[i] = -1
    sim.idle = admission_idle
    settings = _Settings(0)
    vars(settings).update(queue_size=queue_size, queue_timeout=queue_timeout, ttft_timeout=0.0, idle_timeout=0.0,
                          keepalive_timeout=0.0, upstream_idle_timeout=600.0)
    listener = sim_open(END_LISTENER)
    world.checks = False
    try:
        engine.__init__(settings)
        world.worker = world.workers[0] = admission.w = engine.w
        world.worker_count = 1
        engine.listen([listener], [engine], most=1000, resume_at=900)
        engine.configure([(b"b%d" % i, b"b", b"", [("127.0.0.1", 1 + i)], False, places, b"") for i in range(backends)])
        admission.begun = sim.now
        engine.run()
        outcomes = [sys_read_counter(&engine.w.stats.outcomes[i]) for i in range(OUTCOME_COUNT)]
        pools = engine.stats()["pools"]
        in_flight = sum(one["in_flight"] for one in engine.stats()["backends"].values())
        waits = world.worker.shared.waiting
    finally:
        engine.close()
        made = []
        for i in range(admission.count):
            job = &admission.jobs[i]
            made.append(Job(job.comes / 1e6, job.sent / 1e6, job.answered / 1e6, job.status,
                            job.again / 1e3 if job.again >= 0 else None, job.ahead))
        free(admission.jobs)
    if sim.failure[0]:
        raise AssertionError(sim.failure.decode())
    return {"jobs": made, "most_waiting": admission.most_waiting, "pools": pools, "in_flight": in_flight, "waiting": waits,
            "outcomes": {name: n for name, n in zip(OUTCOMES, outcomes) if n}}
