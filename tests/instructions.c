/* Preloaded into `llmpipe serve` under callgrind by instructions.py, which has the other end of descriptor 4.
 *
 * The engine stands still in epoll_wait until it is told how many events to take, so that each turn finds what the script
 * wants it to find, and instructions are counted only between two waits. Its clock is a count of its turns: it never spins
 * (docs/adr/0009), because every wait seems long, and no time-out falls anywhere by chance. The engine is the product's own
 * release build, and its sockets are the kernel's.
 *
 * A command is two bytes, what and n. The answer to each is one byte, how many events the last turn found (255: none was
 * taken yet).
 *   w  takes n events, or whatever comes within 10 ms if n is 0, and turns
 *   a  moves the clock to the next round number, so that turns of a later count see the same times
 *   c  counts from here
 *   d  writes what was counted, and counts no more
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

enum { COMMANDS = 4, TURN = 200, ROUND = 1 << 24 }; /* us; the engine's wheel of time-outs goes round in 2^24 */

static int64_t now = ROUND; /* us */
static int counts;          /* a command's wish */
static __thread int counting;
static __thread int engine; /* this is its thread */

static int of_engine(void *caller) {
    Dl_info info;
    return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "/llmpipe/_pipe.");
}

static void collect(int on) {
    if (on == counting)
        return;
    counting = on;
    CALLGRIND_TOGGLE_COLLECT;
}

int clock_gettime(clockid_t clock, struct timespec *to) {
    int was = counting;
    int mine;
    collect(0);
    mine = of_engine(__builtin_return_address(0));
    if (mine) {
        to->tv_sec = now / 1000000 + (clock == CLOCK_REALTIME ? 1700000000 : 0);
        to->tv_nsec = now % 1000000 * 1000;
    }
    collect(was);
    return mine ? 0 : (int)syscall(SYS_clock_gettime, clock, to);
}

static int wait_for(int epfd, struct epoll_event *events, int most, int timeout) {
    return (int)syscall(SYS_epoll_pwait, epfd, events, most, timeout, NULL, 0);
}

static void give_up(const char *what) {
    fprintf(stderr, "instructions: %s\n", what);
    _exit(1);
}

/* A record rings for the control plane, unless that was rung for and has not looked yet. So that this is no matter of how
 * fast it looks, the engine's next turn waits until it has. */
static uint32_t rung;
static uint32_t heard;

ssize_t write(int fd, const void *data, size_t n) {
    int was = counting;
    ssize_t took;
    collect(0);
    if (engine && of_engine(__builtin_return_address(0)))
        rung++;
    took = syscall(SYS_write, fd, data, n);
    collect(was);
    return took;
}

ssize_t read(int fd, void *data, size_t n) {
    ssize_t got;
    if (engine)
        return syscall(SYS_read, fd, data, n);
    got = syscall(SYS_read, fd, data, n);
    if (got == (ssize_t)sizeof(uint64_t) && of_engine(__builtin_return_address(0)))
        __atomic_add_fetch(&heard, (uint32_t)*(const uint64_t *)data, __ATOMIC_SEQ_CST);
    return got;
}

static void await_control_plane(void) {
    struct timespec pause = {0, 100000};
    for (int i = 0; __atomic_load_n(&heard, __ATOMIC_SEQ_CST) != rung; i++) {
        if (i == 600000)
            give_up("the control plane does not take its records");
        nanosleep(&pause, NULL);
    }
}

/* The script's turn. Returns how many events it wants. */
static int obey(int found) {
    static int started;
    uint8_t command[2], answer;
    for (;;) {
        answer = (uint8_t)found;
        if (write(COMMANDS, &answer, 1) != 1 || read(COMMANDS, command, 2) != 2)
            give_up("the script has gone");
        found = 255;
        switch (command[0]) {
        case 'w':
            return command[1];
        case 'a':
            now = (now / ROUND + 1) * ROUND;
            break;
        case 'c':
            if (!started)
                CALLGRIND_START_INSTRUMENTATION;
            started = 1;
            CALLGRIND_ZERO_STATS;
            counts = 1;
            break;
        case 'd':
            CALLGRIND_DUMP_STATS;
            counts = 0;
            break;
        default:
            give_up("an unknown command");
        }
    }
}

int epoll_wait(int epfd, struct epoll_event *events, int most, int timeout) {
    static int found = 255;
    int wanted, n = 0, more;
    collect(0);
    if (!of_engine(__builtin_return_address(0)))
        return wait_for(epfd, events, most, timeout);
    engine = 1;
    now += TURN;
    if (!timeout) {
        n = wait_for(epfd, events, most, 0); /* it has work left, and takes what came meanwhile */
    } else {
        await_control_plane();
        wanted = obey(found);
        do {
            more = wait_for(epfd, events + n, most - n, wanted ? 60000 : 10);
            if (more < 0 && errno == EINTR)
                continue;
            if (more < 0 || (wanted && !more))
                give_up("an event did not come");
            n += more;
        } while (n < wanted);
        found = n;
    }
    collect(counts);
    return n;
}
