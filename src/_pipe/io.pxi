# io: the only callers of accept, recv, send, connect, shutdown and close. errno is mapped here, and nowhere else.
#
# No call waits, whatever the descriptor's own mode: whoever accepted it need not set that. A result of 0 from io_recv_into is
# the peer's FIN; -EAGAIN is "not now"; any other negative number is -errno, and the connection is lost.

cdef struct AddressC:
    sockaddr_storage address
    socklen_t length

cdef int io_address(AddressC *to, const char *host, int port) noexcept nogil:
    # A numeric IPv4 or IPv6 address and a port. RC_OK, or RC_BAD where `host` is neither.
    cdef sockaddr_in *v4 = <sockaddr_in *>&to.address
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&to.address
    if inet_pton(AF_INET, host, &v4.sin_addr) == 1:
        v4.sin_family = AF_INET
        v4.sin_port = htons(<uint16_t>port)
        to.length = sizeof(sockaddr_in)
    elif inet_pton(AF_INET6, host, &v6.sin6_addr) == 1:
        v6.sin6_family = AF_INET6
        v6.sin6_port = htons(<uint16_t>port)
        to.length = sizeof(sockaddr_in6)
    else:
        return RC_BAD
    return RC_OK

cdef ssize_t io_take(int fd, void *data, size_t n, int flags) noexcept nogil:
    cdef ssize_t got
    while True:
        got = recv(fd, data, n, flags | MSG_DONTWAIT)
        if got >= 0:
            return got
        if errno != EINTR:
            return -errno

cdef ssize_t io_recv_into(int fd, void *data, size_t n) noexcept nogil:
    return io_take(fd, data, n, 0)

cdef ssize_t io_peek(int fd, void *data, size_t n) noexcept nogil:
    # As io_recv_into, but the bytes stay where they are. An error does not: the kernel tells of it once.
    return io_take(fd, data, n, MSG_PEEK)

cdef ssize_t io_discard(int fd, void *scratch, size_t n) noexcept nogil:
    # Takes bytes that io_peek has shown. TCP does not copy them again; a Unix socket does, into `scratch`.
    return io_take(fd, scratch, n, MSG_TRUNC)

cdef ssize_t io_send(int fd, const void *data, size_t n) noexcept nogil:
    # Bytes taken, -EAGAIN where there is no room, -EPIPE or -ECONNRESET where the peer is gone.
    cdef ssize_t took
    while True:
        took = send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT)
        if took >= 0:
            return took
        if errno != EINTR:
            return -errno

cdef void io_nodelay(int fd) noexcept nogil:
    # No Nagle. A Unix socket refuses, and needs none.
    cdef int one = 1
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))

cdef void io_urgent_inline(int fd) noexcept nogil:
    # An urgent byte stays in its place among the others (RFC 6093); else the kernel would take it out of the stream. A Unix
    # socket takes the option too.
    cdef int one = 1
    setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one))

cdef void io_keepalive(int fd, int64_t dead_after) noexcept nogil:
    # Has the kernel end a connection whose peer has said nothing at all for so many us, though it was asked three times.
    # A Unix socket refuses, and needs none; 0 is off.
    cdef int on = 1
    cdef int first = <int>(dead_after // 3000000)
    cdef int between = <int>(dead_after * 2 // 9000000)
    cdef int probes = 3
    if not dead_after:
        return
    if first < 1:
        first = 1
    if between < 1:
        between = 1
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &first, sizeof(first))
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &between, sizeof(between))
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes))
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on))

cdef void io_unanswered(int fd, int64_t most) noexcept nogil:
    # Has the kernel end a connection whose peer leaves bytes unacknowledged, or its window shut, for so many us; 0 leaves
    # it to the kernel's own patience, which is a quarter of an hour (RFC 5482).
    cdef unsigned int milliseconds = <unsigned int>(most // 1000)
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof(milliseconds))

cdef int io_accept(int listener, sockaddr_storage *peer) noexcept nogil:
    # The next connection that waits, and its peer's address; or -errno. On Linux a connection inherits TCP_NODELAY,
    # SO_OOBINLINE, keepalive and the like from its listener.
    cdef socklen_t n = sizeof(sockaddr_storage)
    cdef int fd = accept4(listener, <sockaddr *>peer, &n, SOCK_NONBLOCK | SOCK_CLOEXEC)
    return fd if fd >= 0 else -errno

cdef int io_stream(int fd) noexcept nogil:
    # RC_OK where the descriptor is a stream socket, else -errno.
    cdef int kind = 0
    cdef socklen_t n = sizeof(kind)
    if getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &n) < 0:
        return -errno
    return RC_OK if kind == SOCK_STREAM else -EINVAL

cdef void io_address_text(const sockaddr_storage *peer, char *text, size_t room) noexcept nogil:
    # A peer's address without its port; empty for that of a Unix socket. An IPv4 client of an IPv6 socket has an IPv4
    # address: a service manager may open one for both.
    cdef const in6_addr *v6
    text[0] = 0
    if peer.ss_family == AF_INET:
        inet_ntop(AF_INET, &(<const sockaddr_in *>peer).sin_addr, text, <socklen_t>room)
    elif peer.ss_family == AF_INET6:
        v6 = &(<const sockaddr_in6 *>peer).sin6_addr
        if IN6_IS_ADDR_V4MAPPED(v6):
            inet_ntop(AF_INET, <const uint8_t *>v6 + 12, text, <socklen_t>room)
        else:
            inet_ntop(AF_INET6, v6, text, <socklen_t>room)

cdef bint io_descriptor_free() noexcept nogil:
    # Whether a descriptor can be had.
    cdef int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return False
    close(fd)
    return True

cdef int io_connect(const AddressC *to, int *fd) noexcept nogil:
    # RC_OK connected, RC_AGAIN on its way, RC_FULL, -errno; *fd is open but in the last case.
    cdef int rc
    fd[0] = socket(to.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd[0] < 0:
        return -errno
    io_nodelay(fd[0])
    io_urgent_inline(fd[0])
    rc = io_connect_again(fd[0], to)
    if rc < 0:
        close(fd[0])
    return rc

cdef int io_connect_again(int fd, const AddressC *to) noexcept nogil:
    # The same of a socket that is not connected. TCP asks a full backlog again by itself; a Unix socket says EAGAIN, and no
    # event will tell when there is room.
    if connect(fd, <const sockaddr *>&to.address, to.length) == 0:
        return RC_OK
    if errno == EINPROGRESS:
        return RC_AGAIN
    if errno == EAGAIN and to.address.ss_family == AF_UNIX:
        return RC_FULL
    return -errno

cdef int io_error(int fd) noexcept nogil:
    # The error that waits in a socket, which is told once: 0 or -errno. So a connect tells how it ended.
    cdef int error = 0
    cdef socklen_t n = sizeof(error)
    if getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n) < 0:
        return -errno
    return -error

cdef int io_watch(int epfd, int fd, void *whose) noexcept nogil:
    # Registers once, edge-triggered, for everything; interest is never changed afterwards. 0 or -errno.
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.ptr = whose
    return 0 if epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event) == 0 else -errno

cdef void io_unwatch(int epfd, int fd) noexcept nogil:
    # For what others hold open too: closing our descriptor would leave it in the set.
    epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL)

cdef void io_shut(int fd) noexcept nogil:
    # Sends our FIN; the peer may still send.
    shutdown(fd, SHUT_WR)

cdef void io_close(int fd) noexcept nogil:
    close(fd)

cdef int io_unsent(int fd) noexcept nogil:
    # Bytes that we have sent and the peer's kernel has not taken (SIOCOUTQ in tcp(7)): an RST would destroy them. 0 where that is
    # not known.
    cdef int n = 0
    return n if ioctl(fd, TIOCOUTQ, &n) == 0 else 0

cdef void io_reset(int fd) noexcept nogil:
    # Closes with an RST, so that the peer cannot take what it has for the whole.
    cdef linger now
    now.l_onoff = 1
    now.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))
    close(fd)

cdef void io_wake_post(int fd, uint32_t *wake_pending) noexcept nogil:
    # Wakes the other side, unless it was woken before and has not looked yet.
    cdef uint64_t one = 1
    if not sys_exchange(wake_pending, 1):
        write(fd, &one, sizeof(one))

cdef void io_wake_clear(int fd, uint32_t *wake_pending) noexcept nogil:
    # The woken side calls this before it looks, so that nothing written later goes unseen. The count goes first: what is posted
    # between the two is seen by the look that follows. The other way round it would be read away, with `wake_pending` set for
    # ever, and one that was set before its write would leave the descriptor readable for ever.
    cdef uint64_t count
    read(fd, &count, sizeof(count))
    sys_exchange(wake_pending, 0)
