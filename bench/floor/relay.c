/*
 * The floor of a user-space forwarder: what no proxy that runs epoll, recv and send can be cheaper than.
 *
 *     relay LISTEN_PORT BACKEND_PORT
 *
 * Listens on 127.0.0.1, opens one connection to the backend for each client, and copies bytes both ways. It knows no
 * HTTP, keeps no connection for the next client and has no timers: each would be a cost that is not the kernel's.
 * One thread; SIGTERM or SIGINT ends it with exit code 0.
 *
 *     accept -> open_pair() -> on_event() -> pump(): recv from one end, send to the other -> close_pair() -> reap()
 *
 * Rules:
 * - Every descriptor is registered once, edge-triggered, for reading and writing: no epoll_ctl while it lives.
 * - A short read means an empty socket, so it is not followed by a recv that could only say EAGAIN. What arrives later
 *   is a new edge. Only a FIN that was already reported makes no further edge, so `fin` asks for reads until the end.
 * - While an end has a rest to be sent, nothing is read from its peer. So a rest is never longer than one read.
 * - A FIN or an error of either end closes both. What was read before a FIN has been sent by then, as the FIN is read
 *   last; an error drops what it finds unsent.
 * - Nothing is closed before the end of a turn: a later event of the same batch must not meet a reused descriptor.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_FDS = 20000,
    BUFFER = 8192,
    BATCH = 256,         /* events taken by one epoll_wait */
    READS_PER_TURN = 16, /* of one end, so that a fast one does not starve the others */
    BACKLOG = 4096,
};

/* One socket of a pair, at the index of its descriptor. `rest` and `left` belong to the direction that ends here. */
struct end {
    int peer;    /* descriptor of the other end; 0 while this one is not open, or is about to be closed */
    bool fin;    /* its FIN was reported: read until recv says so too */
    bool queued; /* is in `again` */
    char *rest;  /* bytes read from the peer which this end would not take; NULL mostly */
    size_t sent; /* of the rest */
    size_t left; /* of the rest */
};

static struct end ends[MAX_FDS];
static char buffer[BUFFER]; /* one for all: it is empty again when pump() returns */

static int again[2 * MAX_FDS]; /* ends which used up their reads of this turn, behind those of the turn before */
static int again_count;
static int dead[MAX_FDS]; /* descriptors to be closed at the end of this turn */
static int dead_count;

static int epoll_fd;
static int listen_fd;
static bool listen_ready; /* clients wait that could not be accepted yet, and no edge will tell of them again */
static struct sockaddr_in backend;

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* Nothing has to be written or removed: the kernel takes back all that there is. */
static void on_signal(int signal_number) {
    (void)signal_number;
    _exit(0);
}

static void no_delay(int fd) {
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* on a reset socket it fails: recv will tell */
}

static int watch(int fd, unsigned events) {
    struct epoll_event event = {.events = events | EPOLLET, .data.fd = fd};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

/* Ends both; the descriptors live on until reap(). */
static void close_pair(int fd) {
    int both[2] = {fd, ends[fd].peer};
    for (int i = 0; i < 2; i++) {
        struct end *end = &ends[both[i]];
        free(end->rest);
        *end = (struct end){0};
        dead[dead_count++] = both[i];
    }
}

/* The end of a turn: closes what it ended, and forgets who was to be read again and is no more. */
static void reap(void) {
    int kept = 0;
    for (int i = 0; i < again_count; i++) {
        if (ends[again[i]].queued)
            again[kept++] = again[i];
    }
    again_count = kept;
    for (int i = 0; i < dead_count; i++)
        (void)close(dead[i]);
    dead_count = 0;
}

/* Sends as much as goes. Returns the count, 0 for none, -1 for an error. */
static ssize_t try_send(int fd, const char *data, size_t size) {
    ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    return sent;
}

/* Copies from `fd` to its peer until there is no more, the peer is full or the share is used. May close the pair. */
static void pump(int fd) {
    struct end *end = &ends[fd];
    int to = end->peer;
    for (int reads = 0; reads < READS_PER_TURN; reads++) {
        if (ends[to].left != 0)
            return; /* the peer's EPOLLOUT comes back here */
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0) {
            close_pair(fd);
            return;
        }
        ssize_t sent = try_send(to, buffer, (size_t)got);
        if (sent < 0) {
            close_pair(fd);
            return;
        }
        if (sent < got) {
            size_t left = (size_t)(got - sent);
            char *rest = malloc(left);
            if (rest == NULL) {
                close_pair(fd);
                return;
            }
            memcpy(rest, buffer + sent, left);
            ends[to].rest = rest;
            ends[to].sent = 0;
            ends[to].left = left;
        }
        if ((size_t)got < sizeof buffer && !end->fin)
            return;
    }
    if (!end->queued) {
        end->queued = true;
        again[again_count++] = fd;
    }
}

/* An end can be written to: sends its rest, and when that is gone reads its peer again. May close the pair. */
static void flush(int fd) {
    struct end *end = &ends[fd];
    if (end->left == 0)
        return;
    ssize_t sent = try_send(fd, end->rest + end->sent, end->left);
    if (sent < 0) {
        close_pair(fd);
        return;
    }
    end->sent += (size_t)sent;
    end->left -= (size_t)sent;
    if (end->left != 0)
        return;
    free(end->rest);
    end->rest = NULL;
    pump(end->peer);
}

/* What epoll told of one socket. An earlier event of the batch may have closed it, so each step looks at it again. */
static void on_event(int fd, unsigned events) {
    if (ends[fd].peer != 0 && (events & EPOLLOUT))
        flush(fd);
    if (ends[fd].peer != 0 && (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))) {
        if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            ends[fd].fin = true;
        pump(fd);
    }
    if (ends[fd].peer != 0 && (events & EPOLLERR))
        close_pair(fd); /* its peer is full or its share is used, so pump() did not meet the error */
}

/* Connects an accepted client to the backend, whose answer to that will be an EPOLLOUT or an error. */
static void open_pair(int client) {
    int up = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (up < 0 || up >= MAX_FDS || client >= MAX_FDS)
        goto refuse;
    no_delay(client);
    no_delay(up);
    if (connect(up, (struct sockaddr *)&backend, sizeof backend) < 0 && errno != EINPROGRESS)
        goto refuse;
    if (watch(client, EPOLLIN | EPOLLOUT | EPOLLRDHUP) < 0 || watch(up, EPOLLIN | EPOLLOUT | EPOLLRDHUP) < 0)
        goto refuse;
    ends[client] = (struct end){.peer = up};
    ends[up] = (struct end){.peer = client};
    return;
refuse:
    if (up >= 0)
        (void)close(up);
    (void)close(client);
}

static void accept_clients(void) {
    for (;;) {
        int client = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client >= 0) {
            open_pair(client);
        } else if (errno != ECONNABORTED && errno != EINTR) {
            listen_ready = errno != EAGAIN; /* EMFILE and its like: when a pair is closed */
            return;
        }
    }
}

static void run(void) {
    struct epoll_event events[BATCH];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, BATCH, again_count != 0 ? 0 : -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        int waiting = again_count; /* those that this turn adds are for the next one */
        bool accepting = false;
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listen_fd)
                accepting = true;
            else
                on_event(events[i].data.fd, events[i].events);
        }
        for (int i = 0; i < waiting; i++) {
            if (!ends[again[i]].queued)
                continue; /* closed meanwhile */
            ends[again[i]].queued = false;
            pump(again[i]);
        }
        again_count -= waiting;
        memmove(again, again + waiting, (size_t)again_count * sizeof again[0]);
        if (dead_count != 0) {
            reap();
            accepting = accepting || listen_ready;
        }
        if (accepting)
            accept_clients(); /* last: a new pair must not take a descriptor that this batch has events of */
    }
}

static in_port_t port_of(const char *text) {
    char *end;
    long port = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || port < 1 || port > 65535) {
        fprintf(stderr, "relay: not a port: %s\n", text);
        exit(2);
    }
    return htons((in_port_t)port);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: relay LISTEN_PORT BACKEND_PORT\n");
        return 2;
    }
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = port_of(argv[1]), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    backend = address;
    backend.sin_port = port_of(argv[2]);

    struct sigaction action = {.sa_handler = on_signal};
    if (sigaction(SIGTERM, &action, NULL) < 0 || sigaction(SIGINT, &action, NULL) < 0)
        die("sigaction");
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("getrlimit");
    limit.rlim_cur = limit.rlim_max < MAX_FDS ? limit.rlim_max : MAX_FDS; /* so no descriptor is beyond `ends` */
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("setrlimit");

    int on = 1;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listen_fd < 0 || setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
        die("socket");
    if (bind(listen_fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    if (listen(listen_fd, BACKLOG) < 0)
        die("listen");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0 || watch(listen_fd, EPOLLIN) < 0)
        die("epoll");
    run();
}
