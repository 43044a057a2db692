# sys: every C declaration that the engine uses, and the few helpers that Cython cannot say.
#
# Nothing else in the engine but find declares an extern. A test build may put another file with the same names in the place of
# this one and so script what the kernel answers.

from libc.errno cimport (
    errno, EAGAIN, EBADF, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, EINTR, EINPROGRESS, EINVAL, EMFILE, ENETUNREACH,
    ENFILE, ENOBUFS, ENOMEM, ENOSPC, ENOTSOCK, EPIPE, ETIMEDOUT,
)
from libc.stdint cimport INT32_MAX, INT64_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset, strcpy, strerror, strlen

cdef extern from "<string.h>" nogil:
    void *memmem(const void *haystack, size_t n, const void *needle, size_t m)

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    cdef struct timespec:
        time_t tv_sec
        long tv_nsec
    cdef struct tm:
        int tm_sec
        int tm_min
        int tm_hour
        int tm_mday
        int tm_mon
        int tm_year
        int tm_wday
    int CLOCK_MONOTONIC
    int CLOCK_REALTIME
    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *pause, timespec *left)
    tm *gmtime_r(const time_t *when, tm *parts)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *data, size_t n)
    ssize_t write(int fd, const void *data, size_t n)

cdef extern from "<sys/ioctl.h>" nogil:
    unsigned long TIOCOUTQ      # SIOCOUTQ, which is in a header of Linux's own
    int ioctl(int fd, unsigned long request, int *value)

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *data, size_t n, unsigned int flags)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ
    int PROT_WRITE
    int MAP_PRIVATE
    int MAP_ANONYMOUS
    int MADV_DONTNEED
    void *MAP_FAILED
    void *mmap(void *at, size_t n, int protection, int flags, int fd, long offset)
    int munmap(void *at, size_t n)
    int madvise(void *at, size_t n, int advice)

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    cdef struct sockaddr:
        sa_family_t sa_family
    cdef struct sockaddr_storage:
        sa_family_t ss_family
    cdef struct linger:
        int l_onoff
        int l_linger
    int AF_INET
    int AF_INET6
    int AF_UNIX
    int SOCK_STREAM
    int SOCK_NONBLOCK
    int SOCK_CLOEXEC
    int SOL_SOCKET
    int SO_ERROR
    int SO_TYPE
    int SO_LINGER
    int SO_KEEPALIVE
    int SO_OOBINLINE
    int SHUT_WR
    int MSG_NOSIGNAL
    int MSG_PEEK
    int MSG_TRUNC
    int MSG_DONTWAIT
    int socket(int family, int kind, int protocol)
    int accept4(int fd, sockaddr *address, socklen_t *n, int flags)
    int connect(int fd, const sockaddr *address, socklen_t n)
    ssize_t recv(int fd, void *data, size_t n, int flags)
    ssize_t send(int fd, const void *data, size_t n, int flags)
    int shutdown(int fd, int how)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *n)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t n)

cdef extern from "<netinet/in.h>" nogil:
    cdef struct in_addr:
        uint32_t s_addr
    cdef struct in6_addr:
        pass
    cdef struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
    int IPPROTO_TCP
    bint IN6_IS_ADDR_V4MAPPED(const in6_addr *address)
    uint16_t htons(uint16_t host)

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY
    int TCP_KEEPIDLE
    int TCP_KEEPINTVL
    int TCP_KEEPCNT
    int TCP_USER_TIMEOUT

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, socklen_t n)

cdef extern from "<sys/un.h>" nogil:
    cdef struct sockaddr_un:
        sa_family_t sun_family
        char sun_path[108]

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_NONBLOCK
    int EFD_CLOEXEC
    int eventfd(unsigned int initial, int flags)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN
    uint32_t EPOLLPRI
    uint32_t EPOLLOUT
    uint32_t EPOLLERR
    uint32_t EPOLLHUP
    uint32_t EPOLLRDHUP
    uint32_t EPOLLET
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLL_CTL_DEL
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int operation, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int n, int timeout_ms)

# Words shared by two threads go through these: an acquire load sees all that was written before the release store.
# A plain counter is only ever written by its own thread; the relaxed load keeps another thread's read whole.
cdef extern from *:
    """
    #include <stdint.h>
    static inline uint32_t sys_load_acquire(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline void sys_store_release(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    static inline void sys_add_shared(uint32_t *word, uint32_t n) { __atomic_add_fetch(word, n, __ATOMIC_SEQ_CST); }
    /* What was added by this thread before it is seen by whoever adds to that word after it: of two that each add to a word and then
       look at the other's, one sees what the other has added. */
    static inline uint32_t sys_load_ordered(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
    static inline void sys_or_shared(uint32_t *word, uint32_t bits) { __atomic_or_fetch(word, bits, __ATOMIC_ACQ_REL); }
    /* Where it fails, *seen is what is there instead. */
    static inline int sys_compare_exchange(uint32_t *word, uint32_t *seen, uint32_t value) {
        return __atomic_compare_exchange_n(word, seen, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    static inline int sys_compare_exchange_counter(uint64_t *word, uint64_t *seen, uint64_t value) {
        return __atomic_compare_exchange_n(word, seen, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    static inline uint64_t sys_add_shared_counter(uint64_t *word, uint64_t n) { return __atomic_add_fetch(word, n, __ATOMIC_RELAXED); }
    static inline uint32_t sys_exchange(uint32_t *word, uint32_t value) { return __atomic_exchange_n(word, value, __ATOMIC_ACQ_REL); }
    static inline void *sys_load_pointer(void **word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline void sys_store_pointer(void **word, void *value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    static inline void *sys_exchange_pointer(void **word, void *value) { return __atomic_exchange_n(word, value, __ATOMIC_ACQ_REL); }
    static inline uint64_t sys_read_counter(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
    static inline void sys_add_counter(uint64_t *word, uint64_t n) {
        __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
    }
    static inline void sys_set_counter(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }
    /* A lock for a few hundred instructions, in which no system call is made: 0 is free, 1 taken, 2 taken and waited for (Drepper,
       "Futexes Are Tricky", 2011). */
    #ifndef SYS_SLEEP_ON
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #define SYS_SLEEP_ON(word, value) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL)
    #define SYS_WAKE_AT(word) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1)
    #endif
    static inline void sys_lock(uint32_t *word) {
        uint32_t seen = 0;
        if (__atomic_compare_exchange_n(word, &seen, 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return;
        while (__atomic_exchange_n(word, 2, __ATOMIC_ACQ_REL))
            SYS_SLEEP_ON(word, 2);
    }
    static inline void sys_unlock(uint32_t *word) {
        if (__atomic_exchange_n(word, 0, __ATOMIC_ACQ_REL) == 2)
            SYS_WAKE_AT(word);
    }
    /* What must hold: looked at in the asan flavour and on the simulated kernel, and not compiled elsewhere. */
    #ifdef LLMPIPE_CHECKS
    #include <stdio.h>
    #include <stdlib.h>
    #define sys_check(holds, what) ((holds) ? (void)0 : (fprintf(stderr, "llmpipe: check failed: %s\\n", what), abort()))
    #else
    #define sys_check(holds, what) ((void)(what))
    #endif
    static inline int sys_lowest_bit(uint64_t word) { return __builtin_ctzll(word); }
    static inline int sys_highest_bit(uint64_t word) { return 63 - __builtin_clzll(word); }
    #include <endian.h>
    static inline uint64_t sys_big_endian(uint64_t word) { return htobe64(word); }

    /* Slabs keep what is freed, so AddressSanitizer has to be told what may not be touched. */
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    #define sys_poison(at, n) ASAN_POISON_MEMORY_REGION(at, n)
    #define sys_unpoison(at, n) ASAN_UNPOISON_MEMORY_REGION(at, n)
    #else
    #define sys_poison(at, n) ((void)(at), (void)(n))
    #define sys_unpoison(at, n) ((void)(at), (void)(n))
    #endif
    """
    uint32_t sys_load_acquire(const uint32_t *word) noexcept nogil
    void sys_store_release(uint32_t *word, uint32_t value) noexcept nogil
    void sys_add_shared(uint32_t *word, uint32_t n) noexcept nogil
    void sys_or_shared(uint32_t *word, uint32_t bits) noexcept nogil
    uint32_t sys_load_ordered(const uint32_t *word) noexcept nogil
    void sys_lock(uint32_t *word) noexcept nogil
    void sys_unlock(uint32_t *word) noexcept nogil
    bint sys_compare_exchange(uint32_t *word, uint32_t *seen, uint32_t value) noexcept nogil
    bint sys_compare_exchange_counter(uint64_t *word, uint64_t *seen, uint64_t value) noexcept nogil
    uint64_t sys_add_shared_counter(uint64_t *word, uint64_t n) noexcept nogil
    uint32_t sys_exchange(uint32_t *word, uint32_t value) noexcept nogil
    void *sys_load_pointer(void **word) noexcept nogil
    void sys_store_pointer(void **word, void *value) noexcept nogil
    void *sys_exchange_pointer(void **word, void *value) noexcept nogil
    uint64_t sys_read_counter(const uint64_t *word) noexcept nogil
    void sys_add_counter(uint64_t *word, uint64_t n) noexcept nogil
    void sys_set_counter(uint64_t *word, uint64_t value) noexcept nogil
    void sys_poison(const void *at, size_t n) noexcept nogil
    void sys_unpoison(const void *at, size_t n) noexcept nogil
    void sys_check(bint holds, const char *what) noexcept nogil
    int sys_lowest_bit(uint64_t word) noexcept nogil
    int sys_highest_bit(uint64_t word) noexcept nogil
    uint64_t sys_big_endian(uint64_t word) noexcept nogil
