/* kernel: a simulated one, for the engine's tests. Deterministic, of one thread, and every call can be told to fail.
 *
 * fake_sys.pxi includes this file before the engine's own declarations. It takes in the real headers, defines what the
 * engine calls, and at its end puts these functions in the place of the real ones by macros of the same names. The product
 * knows nothing of it.
 *
 * It is what Linux 6.18 does over loopback, as far as the engine can see: edges of epoll (a wake-up puts a descriptor into
 * the ready list, and epoll_wait then asks for its whole state), FIN, RST, errors that are reported once. Descriptors are
 * never used twice, so a call with a stale one is seen. The clock moves by 1 us with each call, and by as much as the
 * script says where the engine waits: epoll_wait asks sim_idle, the script's runner, what happens next.
 *
 * What the engine sent lies with the kernels (`told`) until the peer's program reads it, at once unless it is lazy. An RST of
 * ours destroys what was not read: on Linux what had not gone out yet, elsewhere also what had come in. It comes of a close
 * with bytes that we have not read, of SO_LINGER 0, and of bytes that arrive after we have closed.
 */
#ifndef LLMPIPE_KERNEL_H
#define LLMPIPE_KERNEL_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SIM_API static __attribute__((unused))

enum {
    SIM_ENDS = 512,             /* descriptors a run; one more is EMFILE */
    SIM_FIRST = 1000,           /* their first number: none that the process has */
    SIM_FAULTS = 16,
    SIM_SERVERS = 16,           /* what connects go to, by the last four bits of a port */
    SIM_MOST_WORK = 2000000,    /* calls between two waits; more is a loop without an end */
    SIM_FOR_EVER = 1 << 30,     /* a fault from now on */
    SIM_PAGE = 4096,
    SIM_UNLIMITED = 1 << 30,
};

/* The calls that are counted and can fail; SIM_CALL_NAMES has their names. */
enum {
    SIM_ACCEPT4, SIM_RECV, SIM_SEND, SIM_SOCKET, SIM_CONNECT, SIM_CLOSE, SIM_SHUTDOWN, SIM_GETSOCKOPT, SIM_SETSOCKOPT,
    SIM_EPOLL_CREATE1, SIM_EPOLL_CTL, SIM_EPOLL_WAIT, SIM_EVENTFD, SIM_READ, SIM_WRITE, SIM_GETRANDOM, SIM_MALLOC,
    SIM_CALLOC, SIM_REALLOC, SIM_MMAP, SIM_MADVISE, SIM_BUF_GET, SIM_SLAB_GET, SIM_IOCTL, SIM_CALLS,
};
static const char *const SIM_CALL_NAMES[] __attribute__((unused)) = {
    "accept4", "recv", "send", "socket", "connect", "close", "shutdown", "getsockopt", "setsockopt", "epoll_create1",
    "epoll_ctl", "epoll_wait", "eventfd", "read", "write", "getrandom", "malloc", "calloc", "realloc", "mmap", "madvise",
    "buf_get", "slab_get", "ioctl",
};

/* What a descriptor is. */
enum { END_NONE, END_LISTENER, END_CLIENT, END_UPSTREAM, END_EPOLL, END_EVENT };

struct sim_bytes {
    uint8_t *data;
    size_t n;
    size_t size;
};

/* A descriptor of the engine, with what its peer has seen. */
struct sim_end {
    uint8_t kind;
    uint8_t closed;
    uint8_t accepted;           /* a client that accept4 has given out */
    uint8_t connecting;
    uint8_t connected;
    uint8_t fin;                /* the peer's FIN stands behind rx */
    uint8_t dead;               /* reset, refused: both directions are over */
    uint8_t shut;               /* the engine sent its FIN */
    uint8_t lingers;            /* SO_LINGER 0: close sends an RST */
    uint8_t starved;            /* the last send found too little room; room is an edge */
    uint8_t watched;
    int set;                    /* the epoll descriptor that watches it */
    uint8_t woken;              /* in the ready list */
    uint8_t ended;              /* what the peer saw last: 0, 'F' a FIN, 'R' an RST */
    uint16_t port;              /* an upstream's peer, or a client's */
    uint8_t origin;             /* of a client, CLIENT_* */
    sa_family_t family;         /* of an upstream's socket */
    int error;                  /* reported once */
    struct epoll_event event;
    struct sim_bytes rx;        /* from the peer; `taken` of it were received */
    size_t taken;
    struct sim_bytes told;      /* all that the peer got */
    size_t room;                /* bytes that send may still take */
    uint64_t count;             /* of an eventfd */
    uint8_t lazy;               /* the peer's program reads nothing of `told` beyond `seen` */
    uint8_t inline_urgent;      /* SO_OOBINLINE */
    uint8_t urgent;             /* the last urgent byte is rx.data[mark], until it was passed */
    size_t mark;
    size_t shown;               /* of `rx`, as far as a MSG_PEEK has shown it */
    size_t seen;                /* of `told`, by the peer's program */
    size_t lost;                /* bytes behind told.n that an RST of ours destroyed */
    size_t destroyed;           /* of these, by SO_LINGER 0 */
    size_t in_time;             /* of `rx`, what came before we closed */
    int64_t fed_at;             /* us: the peer last sent a byte, before we closed ... */
    int64_t left_at;            /* ... and its FIN or RST */
    int64_t took_at;            /* the engine last received one */
    int64_t told_at;            /* the engine last sent one */
    int64_t shut_at;            /* the engine sent its FIN */
    int64_t closed_at;
    int64_t freed_at;           /* there was no room, and then there was */
};

struct sim_fault {
    int call;
    uint64_t nth;               /* from 1 */
    uint64_t row;               /* so many in a row */
    int error;                  /* an errno; negative: no more than so many bytes */
};

static struct sim_kernel {
    struct sim_end ends[SIM_ENDS];
    int count;
    int ready[SIM_ENDS];        /* a ring */
    int ready_first;
    int ready_count;
    int64_t now;                /* us */
    uint64_t work;              /* calls since the engine last waited, or moved a byte */
    uint64_t calls[SIM_CALLS];
    uint64_t injected;          /* faults that were met */
    uint64_t short_calls;
    uint64_t sleeps;
    struct sim_fault faults[SIM_FAULTS];
    int fault_count;
    size_t most_recv;           /* bytes a call; 0 is no limit */
    size_t most_send;
    int interrupts;             /* every other call that can be interrupted is */
    int64_t allocations;        /* live ones */
    uint16_t next_port;
    struct { const uint8_t *start, *end; } *blocks;     /* what is mapped */
    size_t block_count;
    int runaway;                /* it turned without end; from here accept finds nobody, so that the run can end */
    int aborts;                 /* a failure ends the process, as a fuzzer wants it */
    char failure[256];          /* the first */
    int (*idle)(int64_t until);  /* us, -1 for ever; 0: the time has come, 1: something may have happened */
    void (*runs_away)(void);    /* has the engine end */
    void (*step)(void);         /* a call begins, or a word that threads share is touched: who goes on? */
    void (*connects)(const struct sim_end *end);    /* a connect to an address begins; its end is seen in `end` later */
} sim;

SIM_API void sim_fail(const char *what, const char *name, int64_t number) {
    if (!sim.failure[0])
        snprintf(sim.failure, sizeof(sim.failure), "%s: %s %lld", what, name, (long long)number);
    if (sim.aborts) {
        fprintf(stderr, "kernel: %s\n", sim.failure);
        abort();
    }
}

SIM_API void sim_reset(void) {
    int i, aborts = sim.aborts;
    int (*idle)(int64_t) = sim.idle;
    void (*runs_away)(void) = sim.runs_away;
    void (*connects)(const struct sim_end *) = sim.connects;
    for (i = 0; i < sim.count; i++) {
        free(sim.ends[i].rx.data);
        free(sim.ends[i].told.data);
    }
    free(sim.blocks);
    memset(sim.ends, 0, sizeof(sim.ends[0]) * (size_t)sim.count);
    memset((char *)&sim + sizeof(sim.ends), 0, sizeof(sim) - sizeof(sim.ends));
    sim.now = 1000000000;
    sim.next_port = 40000;
    sim.aborts = aborts;
    sim.idle = idle;
    sim.runs_away = runs_away;
    sim.connects = connects;
}

SIM_API void sim_step(void) {
    if (sim.step)
        sim.step();
}

/* The words that threads share are touched through these (sys.pxi). */
#define __atomic_load_n(word, order) (sim_step(), __atomic_load_n(word, order))
#define __atomic_store_n(word, value, order) (sim_step(), __atomic_store_n(word, value, order))
#define __atomic_exchange_n(word, value, order) (sim_step(), __atomic_exchange_n(word, value, order))
#define __atomic_compare_exchange_n(word, seen, value, weak, done, failed) \
    (sim_step(), __atomic_compare_exchange_n(word, seen, value, weak, done, failed))
#define __atomic_or_fetch(word, bits, order) (sim_step(), __atomic_or_fetch(word, bits, order))
#define __atomic_add_fetch(word, n, order) (sim_step(), __atomic_add_fetch(word, n, order))

/* Who waits for a lock has another engine go on. */
#define SYS_SLEEP_ON(word, value) sim_step()
#define SYS_WAKE_AT(word) sim_step()

/* Counts a call. 0, or the errno that it must fail with; negative: it may take only so many bytes. */
SIM_API int sim_enter(int call) {
    int i;
    uint64_t nth;
    sim_step();
    nth = ++sim.calls[call];
    sim.now++;
    if (++sim.work == SIM_MOST_WORK) {
        sim_fail("the engine turns without end", SIM_CALL_NAMES[call], call);
        sim.runaway = 1;
        sim.fault_count = sim.interrupts = 0;
        if (sim.runs_away)
            sim.runs_away();
    } else if (sim.work > 2 * SIM_MOST_WORK) {
        fprintf(stderr, "kernel: the engine cannot even be stopped; the last call was %s\n", SIM_CALL_NAMES[call]);
        abort();
    }
    for (i = 0; i < sim.fault_count; i++)
        if (sim.faults[i].call == call && nth >= sim.faults[i].nth && nth - sim.faults[i].nth < sim.faults[i].row) {
            sim.injected++;
            return sim.faults[i].error;
        }
    if (sim.interrupts && (nth & 1)
            && (call == SIM_RECV || call == SIM_SEND || call == SIM_ACCEPT4)) {
        sim.injected++;
        return EINTR;
    }
    return 0;
}

SIM_API struct sim_end *sim_find(int fd, int call) {
    struct sim_end *end = &sim.ends[fd - SIM_FIRST];
    if (fd < SIM_FIRST || fd >= SIM_FIRST + sim.count || end->closed) {
        sim_fail(fd < SIM_FIRST || fd >= SIM_FIRST + sim.count ? "a descriptor that never was" : "a closed descriptor",
                 SIM_CALL_NAMES[call], fd);
        errno = EBADF;
        return NULL;
    }
    return end;
}

SIM_API int sim_open(int kind) {
    if (sim.count == SIM_ENDS) {
        errno = EMFILE;
        return -1;
    }
    sim.ends[sim.count].kind = (uint8_t)kind;
    sim.ends[sim.count].room = SIM_UNLIMITED;
    return SIM_FIRST + sim.count++;
}

SIM_API void sim_append(struct sim_bytes *to, const void *data, size_t n) {
    if (to->n + n > to->size) {
        to->size = (to->n + n) * 2;
        to->data = realloc(to->data, to->size);
        if (!to->data)
            abort();
    }
    if (n)
        memcpy(to->data + to->n, data, n);
    to->n += n;
}

SIM_API size_t sim_unread(const struct sim_end *end) { return end->rx.n - end->taken; }

SIM_API int sim_denied(int call) {
    /* For the engine's own functions that give out memory (`buf_get`, `slab_get`): whether it finds none. */
    return sim_enter(call) > 0;
}

SIM_API size_t sim_readable(const struct sim_end *end) {
    /* What recv can give at least a byte of: an urgent byte that is not kept inline does not count. */
    size_t n = sim_unread(end);
    return n == 1 && end->urgent && !end->inline_urgent && end->mark == end->taken ? 0 : n;
}

SIM_API void sim_send_reset(struct sim_end *end) {
    /* The engine's RST reaches the peer's kernel. */
    end->ended = 'R';
    if (end->lazy && end->seen < end->told.n && end->family != AF_UNIX) {      /* that one keeps what it was given */
        end->lost += end->told.n - end->seen;
        end->told.n = end->seen;
    }
}

SIM_API void sim_see(struct sim_end *end, int lazy) {
    /* The peer's program reads all that came, and from now on at once, or (lazy) nothing more. */
    end->seen = end->told.n;
    end->lazy = (uint8_t)lazy;
}

/* ------------------------------------------------------------------------------------------------------- the ready list */

SIM_API uint32_t sim_state(const struct sim_end *end) {
    uint32_t state = 0;
    if (end->kind == END_EVENT)
        return (end->count ? EPOLLIN : 0) | EPOLLOUT;
    if (end->kind == END_LISTENER)
        return end->dead ? EPOLLOUT | EPOLLHUP : end->count ? EPOLLIN : 0;
    if (end->connecting)
        return 0;
    if (end->dead)
        return EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | (end->error ? EPOLLERR : 0);
    if (!end->connected)
        return EPOLLOUT | EPOLLHUP;
    if (sim_readable(end) || end->fin)
        state |= EPOLLIN;
    if (end->urgent)
        state |= EPOLLPRI;
    if (end->fin)
        state |= EPOLLRDHUP;
    if (end->fin && end->shut)
        state |= EPOLLHUP;
    if (end->shut || end->room)
        state |= EPOLLOUT;
    return state;
}

SIM_API void sim_wake(struct sim_end *end) {
    if (!end->watched || end->woken || end->closed)
        return;
    end->woken = 1;
    sim.ready[(sim.ready_first + sim.ready_count++) % SIM_ENDS] = (int)(end - sim.ends);
}

/* ------------------------------------------------------------------------------------------ what the script does to it */

SIM_API struct sim_end *sim_listener(void) {
    int i;
    for (i = 0; i < sim.count; i++)
        if (sim.ends[i].kind == END_LISTENER)
            return &sim.ends[i];
    return NULL;
}

SIM_API struct sim_end *sim_arrive(size_t room) {
    /* A client connects. NULL where too many did. */
    struct sim_end *listener = sim_listener();
    int fd = sim_open(END_CLIENT);
    struct sim_end *end;
    if (fd < 0)
        return NULL;
    end = &sim.ends[fd - SIM_FIRST];
    end->connected = 1;
    end->room = room;
    end->port = sim.next_port++;
    if (listener && listener->dead) {
        end->ended = 'R';
        end->dead = 1;
    } else if (listener && !listener->closed) {
        listener->count++;
        sim_wake(listener);
    }
    return end;
}

SIM_API void sim_feed(struct sim_end *end, const void *data, size_t n) {
    if (end->dead || end->fin || !end->connected || !n)
        return;
    sim_append(&end->rx, data, n);
    if (end->closed) {
        sim_send_reset(end);
        return;
    }
    end->in_time = end->rx.n;
    end->fed_at = sim.now;
    sim_wake(end);
}

SIM_API void sim_feed_urgent(struct sim_end *end, const void *data, size_t n) {
    /* As MSG_OOB: the last byte is the urgent one. An earlier one that was not passed yet becomes a byte as any other. */
    if (end->dead || end->fin || !end->connected || end->closed || !n)
        return;
    end->urgent = 1;
    end->mark = end->rx.n + n - 1;
    sim_feed(end, data, n);
}

SIM_API void sim_listener_shut(void) {
    /* Another process that holds the listening socket shuts it down: who waits in its backlog is reset. */
    struct sim_end *listener = sim_listener();
    int i;
    if (!listener || listener->closed)
        return;
    listener->dead = 1;
    listener->count = 0;
    for (i = 0; i < sim.count; i++)
        if (sim.ends[i].kind == END_CLIENT && !sim.ends[i].accepted) {
            sim.ends[i].ended = 'R';
            sim.ends[i].dead = 1;
        }
    sim_wake(listener);
}

SIM_API void sim_feed_fin(struct sim_end *end) {
    if (end->dead || end->fin || !end->connected)
        return;
    end->fin = 1;
    if (!end->closed)
        end->left_at = sim.now;
    sim_wake(end);
}

SIM_API void sim_feed_reset(struct sim_end *end) {
    if (end->dead || !end->connected)
        return;
    end->dead = 1;
    end->error = end->fin ? EPIPE : ECONNRESET;
    end->room = 0;
    if (!end->closed && !end->left_at)
        end->left_at = sim.now;
    sim_wake(end);
}

SIM_API void sim_feed_room(struct sim_end *end, size_t room) {
    if (end->dead || end->closed)
        return;
    end->room = room;
    if (!room)
        end->starved = 1;       /* poll finds no room, and asks to be told of it (tcp_poll) */
    if (room && end->starved) {
        end->starved = 0;
        end->freed_at = sim.now;
        sim_wake(end);
    }
}

SIM_API void sim_settle(struct sim_end *end, int error) {
    /* A connect that was on its way ends. */
    if (!end->connecting)
        return;
    end->connecting = 0;
    if (error) {
        end->dead = 1;
        end->error = error;
    } else
        end->connected = 1;
    sim_wake(end);
}

/* ------------------------------------------------------------------------------------------------ what the engine calls */

#define SIM_ENTER(call, failed)         \
    int fault = sim_enter(call);        \
    if (fault > 0) {                    \
        errno = fault;                  \
        return failed;                  \
    }

/* How connects to a server end: set by the script. A Unix socket's connect never waits: it is done, refused, or, where the
 * backlog is full (CONNECT_HANGS), to be tried again. */
enum { CONNECT_SOON, CONNECT_NOW, CONNECT_HANGS, CONNECT_REFUSED_SOON, CONNECT_REFUSED_NOW, CONNECT_MODES };
static uint8_t sim_connects[SIM_SERVERS];

/* Where a client comes from: one address of each family, and one of IPv4 as a socket for both families shows it. */
enum { CLIENT_OF_IPV4, CLIENT_OF_IPV6, CLIENT_MAPPED, CLIENT_FAMILIES };

SIM_API socklen_t sim_address(const struct sim_end *end, void *to) {
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    memset(&v4, 0, sizeof(v4));
    memset(&v6, 0, sizeof(v6));
    if (end->origin == CLIENT_OF_IPV4) {
        v4.sin_family = AF_INET;
        v4.sin_port = htons(end->port);
        v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        memcpy(to, &v4, sizeof(v4));
        return sizeof(v4);
    }
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(end->port);
    inet_pton(AF_INET6, end->origin == CLIENT_MAPPED ? "::ffff:127.0.0.1" : "::1", &v6.sin6_addr);
    memcpy(to, &v6, sizeof(v6));
    return sizeof(v6);
}

SIM_API uint16_t sim_port_of(const struct sockaddr *address, socklen_t n) {
    /* The port of an address, or the number at the end of a Unix socket's path; 0 where it is none. */
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    const struct sockaddr_un *local = (const struct sockaddr_un *)(const void *)address;
    if (address->sa_family == AF_INET && n == sizeof(v4)) {
        memcpy(&v4, address, sizeof(v4));
        return ntohs(v4.sin_port);
    }
    if (address->sa_family == AF_INET6 && n == sizeof(v6)) {
        memcpy(&v6, address, sizeof(v6));
        return ntohs(v6.sin6_port);
    }
    if (address->sa_family == AF_UNIX && strrchr(local->sun_path, '-'))
        return (uint16_t)atoi(strrchr(local->sun_path, '-') + 1);
    return 0;
}

SIM_API int sim_accept4(int fd, struct sockaddr *address, socklen_t *n, int flags) {
    struct sim_end *end = sim_find(fd, SIM_ACCEPT4);
    int i;
    SIM_ENTER(SIM_ACCEPT4, -1)
    if (!end)
        return -1;
    if ((flags & (SOCK_NONBLOCK | SOCK_CLOEXEC)) != (SOCK_NONBLOCK | SOCK_CLOEXEC))
        sim_fail("flags", "accept4", flags);
    if (end->dead && !sim.runaway) {
        errno = EINVAL;
        return -1;
    }
    for (i = 0; i < sim.count; i++)
        if (sim.ends[i].kind == END_CLIENT && !sim.ends[i].accepted && !end->dead) {
            sim.ends[i].accepted = 1;
            sim.ends[i].inline_urgent = end->inline_urgent;     /* it inherits its listener's options */
            end->count--;
            *n = sim_address(&sim.ends[i], address);
            return SIM_FIRST + i;
        }
    errno = EAGAIN;
    return -1;
}

SIM_API ssize_t sim_recv(int fd, void *data, size_t n, int flags) {
    struct sim_end *end = sim_find(fd, SIM_RECV);
    size_t there, from;
    SIM_ENTER(SIM_RECV, -1)
    if (!end)
        return -1;
    if (!(flags & MSG_DONTWAIT))
        sim_fail("a call that may wait", "recv", fd);
    if (n == 0)
        sim_fail("no room", "recv", fd);
    from = end->taken;
    if (end->urgent && end->mark == from && !end->inline_urgent && sim_unread(end)) {
        from++;     /* it is stepped over, on the way to a byte behind or not */
        if (!(flags & MSG_PEEK)) {
            end->taken = from;
            end->urgent = 0;
        }
    }
    there = end->rx.n - from;
    if (!there) {
        if (end->error) {
            errno = end->error;
            end->error = 0;
            return -1;
        }
        if (end->dead || end->fin)
            return 0;
        errno = end->connected ? EAGAIN : ENOTCONN;
        return -1;
    }
    if (n > there)
        n = there;
    if (end->urgent && end->mark > from && n > end->mark - from)
        n = end->mark - from;           /* a call ends before the mark, though there is more */
    if (!(flags & (MSG_PEEK | MSG_TRUNC))) {
        size_t most = fault < 0 ? (size_t)-fault : sim.most_recv;
        if (most && n > most) {
            n = most;
            sim.short_calls++;
            sim_wake(end);      /* as if the rest came a moment later */
        }
    }
    if (!(flags & MSG_TRUNC) || end->family == AF_UNIX)     /* TCP throws away what it is told to */
        memcpy(data, end->rx.data + from, n);
    if (flags & MSG_PEEK) {
        if (end->shown < from + n)
            end->shown = from + n;
    } else {
        end->taken += n;
        end->took_at = sim.now;
        sim.work = 0;           /* bytes come to an end: who moves them does not turn for ever */
        if (end->urgent && end->taken > end->mark)
            end->urgent = 0;
    }
    return (ssize_t)n;
}

SIM_API ssize_t sim_send(int fd, const void *data, size_t n, int flags) {
    struct sim_end *end = sim_find(fd, SIM_SEND);
    size_t most;
    SIM_ENTER(SIM_SEND, -1)
    if (!end)
        return -1;
    if ((flags & (MSG_DONTWAIT | MSG_NOSIGNAL)) != (MSG_DONTWAIT | MSG_NOSIGNAL))
        sim_fail("a call that may wait, or raise SIGPIPE", "send", fd);
    if (end->dead || end->shut) {
        errno = end->error ? end->error : EPIPE;
        end->error = 0;
        return -1;
    }
    if (!end->connected) {
        errno = end->connecting ? EAGAIN : ENOTCONN;
        return -1;
    }
    most = fault < 0 ? (size_t)-fault : sim.most_send;
    if (!end->room) {
        end->starved = 1;
        errno = EAGAIN;
        return -1;
    }
    if (n > end->room) {
        n = end->room;
        end->starved = 1;
    }
    if (most && n > most) {
        n = most;
        sim.short_calls++;
        sim_wake(end);          /* as if the peer took the rest a moment later */
    }
    if (end->room != SIM_UNLIMITED)
        end->room -= n;
    sim_append(&end->told, data, n);
    if (!end->lazy)
        end->seen = end->told.n;
    end->told_at = sim.now;
    sim.work = 0;
    return (ssize_t)n;
}

SIM_API int sim_socket(int family, int kind, int protocol) {
    int fd;
    (void)kind, (void)protocol;
    SIM_ENTER(SIM_SOCKET, -1)
    fd = sim_open(END_UPSTREAM);
    if (fd >= 0)
        sim.ends[fd - SIM_FIRST].family = (sa_family_t)family;
    return fd;
}

SIM_API int sim_connect(int fd, const struct sockaddr *address, socklen_t n) {
    struct sim_end *end = sim_find(fd, SIM_CONNECT);
    int mode;
    SIM_ENTER(SIM_CONNECT, -1)
    if (!end)
        return -1;
    end->port = sim_port_of(address, n);
    if (address->sa_family != end->family || !end->port)
        sim_fail("an address that is none of its socket's", "connect", address->sa_family);
    mode = sim_connects[end->port % SIM_SERVERS];
    if (end->family == AF_UNIX && mode == CONNECT_HANGS) {
        errno = EAGAIN;
        return -1;
    }
    if (sim.connects)
        sim.connects(end);
    if (mode == CONNECT_NOW || (end->family == AF_UNIX && mode == CONNECT_SOON)) {
        end->connected = 1;
        return 0;
    }
    if (mode == CONNECT_REFUSED_NOW || end->family == AF_UNIX) {
        errno = ECONNREFUSED;
        return -1;
    }
    end->connecting = 1;
    if (mode == CONNECT_SOON)
        sim_settle(end, 0);
    else if (mode == CONNECT_REFUSED_SOON)
        sim_settle(end, ECONNREFUSED);
    errno = EINPROGRESS;
    return -1;
}

SIM_API int sim_close(int fd) {
    /* Linux closes, whatever close returns. */
    struct sim_end *end = sim_find(fd, SIM_CLOSE);
    int fault = sim_enter(SIM_CLOSE);
    if (!end)
        return -1;
    end->closed = 1;
    end->closed_at = sim.now;
    if (end->connected && !end->dead) {
        if ((end->lingers && end->family != AF_UNIX) || sim_unread(end)) {
            sim_send_reset(end);
            end->destroyed = end->lingers ? end->lost : 0;
        }
        else if (!end->shut)
            end->ended = 'F';
    }
    if (fault > 0) {
        errno = fault;
        return -1;
    }
    return 0;
}

SIM_API int sim_shutdown(int fd, int how) {
    struct sim_end *end = sim_find(fd, SIM_SHUTDOWN);
    SIM_ENTER(SIM_SHUTDOWN, -1)
    if (!end)
        return -1;
    if (how != SHUT_WR)
        sim_fail("how", "shutdown", how);
    if (!end->connected || end->dead) {
        errno = ENOTCONN;
        return -1;
    }
    if (!end->shut) {
        end->ended = 'F';
        end->shut_at = sim.now;
    }
    end->shut = 1;
    sim_wake(end);
    return 0;
}

SIM_API int sim_getsockopt(int fd, int level, int name, void *value, socklen_t *n) {
    struct sim_end *end = sim_find(fd, SIM_GETSOCKOPT);
    SIM_ENTER(SIM_GETSOCKOPT, -1)
    if (!end)
        return -1;
    if (level != SOL_SOCKET || name != SO_ERROR || *n != sizeof(int))
        sim_fail("an option that the kernel does not know", "getsockopt", name);
    memcpy(value, &end->error, sizeof(int));
    end->error = 0;
    return 0;
}

SIM_API int sim_setsockopt(int fd, int level, int name, const void *value, socklen_t n) {
    struct sim_end *end = sim_find(fd, SIM_SETSOCKOPT);
    struct linger linger;
    SIM_ENTER(SIM_SETSOCKOPT, -1)
    if (!end)
        return -1;
    if (level == IPPROTO_TCP && end->family == AF_UNIX) {
        errno = EOPNOTSUPP;
        return -1;
    }
    if (level == SOL_SOCKET && name == SO_LINGER) {
        if (n != sizeof(linger)) {
            errno = EINVAL;
            return -1;
        }
        memcpy(&linger, value, sizeof(linger));
        end->lingers = linger.l_onoff && linger.l_linger == 0;
    } else if (level == SOL_SOCKET && name == SO_OOBINLINE && n == sizeof(int)) {
        int on;
        memcpy(&on, value, sizeof(on));
        end->inline_urgent = on != 0;
    }
    return 0;
}

SIM_API int sim_ioctl(int fd, unsigned long request, int *value) {
    struct sim_end *end = sim_find(fd, SIM_IOCTL);
    SIM_ENTER(SIM_IOCTL, -1)
    if (!end)
        return -1;
    if (request != TIOCOUTQ)
        sim_fail("a request that the kernel does not know", "ioctl", (int64_t)request);
    *value = end->lazy && !end->dead ? (int)(end->told.n - end->seen) : 0;     /* what an RST would destroy */
    return 0;
}

SIM_API int sim_epoll_create1(int flags) {
    (void)flags;
    SIM_ENTER(SIM_EPOLL_CREATE1, -1)
    return sim_open(END_EPOLL);
}

SIM_API int sim_eventfd(unsigned int initial, int flags) {
    int fd;
    (void)flags;
    SIM_ENTER(SIM_EVENTFD, -1)
    fd = sim_open(END_EVENT);
    if (fd >= 0)
        sim.ends[fd - SIM_FIRST].count = initial;
    return fd;
}

SIM_API int sim_epoll_ctl(int epfd, int operation, int fd, struct epoll_event *event) {
    struct sim_end *set = sim_find(epfd, SIM_EPOLL_CTL);
    struct sim_end *end = sim_find(fd, SIM_EPOLL_CTL);
    SIM_ENTER(SIM_EPOLL_CTL, -1)
    if (!set || !end)
        return -1;
    if (operation == EPOLL_CTL_DEL && end->watched) {
        end->watched = 0;
        return 0;
    }
    if (operation != EPOLL_CTL_ADD || end->watched) {
        sim_fail("a second time, or not to add", "epoll_ctl", fd);
        errno = EEXIST;
        return -1;
    }
    end->watched = 1;
    end->set = epfd;
    end->event = *event;
    if (sim_state(end) & event->events)
        sim_wake(end);
    return 0;
}

SIM_API int sim_ready(int epfd) {
    /* Whether a set has something in its ready list. */
    int i;
    for (i = 0; i < sim.ready_count; i++)
        if (sim.ends[sim.ready[(sim.ready_first + i) % SIM_ENDS]].set == epfd)
            return 1;
    return 0;
}

SIM_API int sim_epoll_wait(int epfd, struct epoll_event *events, int n, int timeout_ms) {
    struct sim_end *end;
    uint32_t state;
    int count = 0, left;
    int64_t until = timeout_ms < 0 ? -1 : sim.now + (int64_t)timeout_ms * 1000;
    SIM_ENTER(SIM_EPOLL_WAIT, -1)
    if (!sim_find(epfd, SIM_EPOLL_WAIT))
        return -1;
    for (;;) {
        for (left = sim.ready_count; left > 0 && count < n; left--) {
            end = &sim.ends[sim.ready[sim.ready_first]];
            sim.ready_first = (sim.ready_first + 1) % SIM_ENDS;
            sim.ready_count--;
            end->woken = 0;
            if (end->set != epfd) {
                sim_wake(end);      /* of another engine */
                continue;
            }
            state = sim_state(end) & (end->event.events | EPOLLERR | EPOLLHUP);
            if (end->closed || !end->watched || !state)
                continue;
            events[count].events = state;
            events[count].data = end->event.data;
            count++;
        }
        if (count || timeout_ms == 0)
            return count;
        if (sim.interrupts && (++sim.sleeps & 1)) {
            sim.injected++;
            errno = EINTR;
            return -1;
        }
        sim.work = 0;
        if (!sim.idle(until))
            return 0;
    }
}

SIM_API ssize_t sim_read(int fd, void *data, size_t n) {
    struct sim_end *end = sim_find(fd, SIM_READ);
    SIM_ENTER(SIM_READ, -1)
    if (!end)
        return -1;
    if (end->kind != END_EVENT || n != sizeof(end->count))
        sim_fail("of no eventfd", "read", fd);
    if (!end->count) {
        errno = EAGAIN;
        return -1;
    }
    memcpy(data, &end->count, sizeof(end->count));
    end->count = 0;
    return sizeof(end->count);
}

SIM_API ssize_t sim_write(int fd, const void *data, size_t n) {
    struct sim_end *end = sim_find(fd, SIM_WRITE);
    uint64_t more;
    SIM_ENTER(SIM_WRITE, -1)
    if (!end)
        return -1;
    if (end->kind != END_EVENT || n != sizeof(more))
        sim_fail("to no eventfd", "write", fd);
    memcpy(&more, data, sizeof(more));
    end->count += more;
    sim_wake(end);
    return sizeof(more);
}

SIM_API int sim_clock_gettime(clockid_t clock, struct timespec *now) {
    int64_t us = ++sim.now + (clock == CLOCK_REALTIME ? 1767225600000000LL : 0);    /* 2026-01-01 */
    now->tv_sec = us / 1000000;
    now->tv_nsec = us % 1000000 * 1000;
    return 0;
}

SIM_API ssize_t sim_getrandom(void *data, size_t n, unsigned int flags) {
    size_t i;
    (void)flags;
    SIM_ENTER(SIM_GETRANDOM, -1)
    for (i = 0; i < n; i++)
        ((uint8_t *)data)[i] = (uint8_t)(i * 151 + 7);
    return (ssize_t)n;
}

/* Memory is the real one, so that sanitizers see it. */
SIM_API void *sim_malloc(size_t n) {
    SIM_ENTER(SIM_MALLOC, NULL)
    sim.allocations++;
    return malloc(n);
}

SIM_API void *sim_calloc(size_t count, size_t n) {
    SIM_ENTER(SIM_CALLOC, NULL)
    sim.allocations++;
    return calloc(count, n);
}

SIM_API void *sim_realloc(void *at, size_t n) {
    SIM_ENTER(SIM_REALLOC, NULL)
    sim.allocations += at == NULL;
    return realloc(at, n);
}

SIM_API void sim_free(void *at) {
    sim.allocations -= at != NULL;
    free(at);
}

/* What is mapped ends where a page begins that nobody may touch: a byte behind the last buffer of a block is a crash, and the
 * worker's hot buffer is that last one. */
SIM_API size_t sim_pages(size_t n) { return (n + SIM_PAGE - 1) / SIM_PAGE * SIM_PAGE; }

/* How far into its pages a block begins, so that it ends where the pages do; what it holds first is aligned all the same. */
SIM_API size_t sim_slack(size_t n) { return (sim_pages(n) - n) & ~(size_t)15; }

SIM_API void *sim_mmap(void *at, size_t n, int protection, int flags, int fd, long offset) {
    uint8_t *pages;
    SIM_ENTER(SIM_MMAP, MAP_FAILED)
    pages = mmap(at, sim_pages(n) + SIM_PAGE, protection, flags, fd, offset);
    if (pages == MAP_FAILED || mprotect(pages + sim_pages(n), SIM_PAGE, PROT_NONE))
        abort();
    sim.allocations++;
    pages += sim_slack(n);
    if ((sim.block_count & 63) == 0)
        sim.blocks = realloc(sim.blocks, sizeof(sim.blocks[0]) * (sim.block_count + 64));
    if (!sim.blocks)
        abort();
    sim.blocks[sim.block_count].start = pages;
    sim.blocks[sim.block_count++].end = pages + n;
    return pages;
}

SIM_API void *sim_memchr(const void *at, int byte, size_t n) {
    /* It may not be told to look beyond a block of buffers, even where it would find the byte before. */
    size_t i;
    for (i = 0; i < sim.block_count; i++)
        if ((const uint8_t *)at >= sim.blocks[i].start && (const uint8_t *)at < sim.blocks[i].end
                && n > (size_t)(sim.blocks[i].end - (const uint8_t *)at)) {
            sim_fail("it looks behind a buffer", "memchr", (int64_t)n - (sim.blocks[i].end - (const uint8_t *)at));
            n = (size_t)(sim.blocks[i].end - (const uint8_t *)at);
        }
    return (memchr)(at, byte, n);
}

SIM_API int sim_munmap(void *at, size_t n) {
    sim.allocations--;
    return munmap((uint8_t *)at - sim_slack(n), sim_pages(n) + SIM_PAGE);
}

SIM_API int sim_madvise(void *at, size_t n, int advice) {
    SIM_ENTER(SIM_MADVISE, -1)
    (void)at, (void)n, (void)advice;    /* of buffers that are smaller than a page where the world is small */
    return 0;
}

#define accept4(fd, address, n, flags) sim_accept4(fd, address, n, flags)
#define recv(fd, data, n, flags) sim_recv(fd, data, n, flags)
#define send(fd, data, n, flags) sim_send(fd, data, n, flags)
#define socket(family, kind, protocol) sim_socket(family, kind, protocol)
#define connect(fd, address, n) sim_connect(fd, address, n)
#define close(fd) sim_close(fd)
#define shutdown(fd, how) sim_shutdown(fd, how)
#define getsockopt(fd, level, name, value, n) sim_getsockopt(fd, level, name, value, n)
#define setsockopt(fd, level, name, value, n) sim_setsockopt(fd, level, name, value, n)
#define ioctl(fd, request, value) sim_ioctl(fd, request, value)
#define epoll_create1(flags) sim_epoll_create1(flags)
#define epoll_ctl(epfd, operation, fd, event) sim_epoll_ctl(epfd, operation, fd, event)
#define epoll_wait(epfd, events, n, timeout) sim_epoll_wait(epfd, events, n, timeout)
#define eventfd(initial, flags) sim_eventfd(initial, flags)
#define read(fd, data, n) sim_read(fd, data, n)
#define write(fd, data, n) sim_write(fd, data, n)
#define clock_gettime(clock, now) sim_clock_gettime(clock, now)
#define getrandom(data, n, flags) sim_getrandom(data, n, flags)
#define malloc(n) sim_malloc(n)
#define calloc(count, n) sim_calloc(count, n)
#define realloc(at, n) sim_realloc(at, n)
#define free(at) sim_free(at)
#define memchr(at, byte, n) sim_memchr(at, byte, n)
#define mmap(at, n, protection, flags, fd, offset) sim_mmap(at, n, protection, flags, fd, offset)
#define munmap(at, n) sim_munmap(at, n)
#define madvise(at, n, advice) sim_madvise(at, n, advice)

#endif
