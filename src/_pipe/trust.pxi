# trust: addresses of hosts, and which peers are believed when they tell of the hops before them (rule B1).
#
# Whether a peer is one of them is found out once, when it is accepted. Who asked is then the last member of X-Forwarded-For that
# is not one of them itself: what stands further left was written by somebody whom nobody vouches for.

cdef enum:
    MAX_NETWORKS = 64
    MEMBER_ROOM = 64        # the longest member that can be an address: brackets, a colon and a port around an IPv6 one

# An IPv6 address, or an IPv4 one mapped into it; all zeros for none.
cdef struct HostC:
    uint8_t bytes[16]

cdef struct NetworkC:
    HostC host
    int bits                # that count, of 128

cdef struct TrustC:
    int count
    bint local               # peers on a Unix socket
    NetworkC networks[MAX_NETWORKS]

cdef bint host_is_v4(const HostC *host) noexcept nogil:
    return memcmp(host.bytes, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0

cdef void host_set(HostC *host, const uint8_t *address, size_t n) noexcept nogil:
    # From the 4 or 16 bytes of an address.
    memset(host, 0, sizeof(HostC))
    if n == 4:
        host.bytes[10] = host.bytes[11] = 0xFF
    memcpy(host.bytes + 16 - n, address, n)

cdef bint host_of_peer(HostC *host, const sockaddr_storage *peer) noexcept nogil:
    # False for a peer without an address, as on a Unix socket.
    if peer.ss_family == AF_INET:
        host_set(host, <const uint8_t *>&(<const sockaddr_in *>peer).sin_addr, 4)
    elif peer.ss_family == AF_INET6:
        host_set(host, <const uint8_t *>&(<const sockaddr_in6 *>peer).sin6_addr, 16)
    else:
        return False
    return True

cdef bint host_known(const HostC *host) noexcept nogil:
    cdef uint64_t halves[2]
    memcpy(halves, host.bytes, sizeof(HostC))
    return (halves[0] | halves[1]) != 0

cdef void host_text(const HostC *host, char *text, size_t room) noexcept nogil:
    if host_is_v4(host):
        inet_ntop(AF_INET, host.bytes + 12, text, <socklen_t>room)
    else:
        inet_ntop(AF_INET6, host.bytes, text, <socklen_t>room)

# Reads an address as it stands in X-Forwarded-For: alone, or with a port, an IPv6 one then in brackets, which some write
# without a port too. False where it is none: the field also holds "unknown" and made up names (RFC 7239 section 6).
cdef bint host_read(HostC *host, const uint8_t *p, size_t n) noexcept nogil:
    cdef char text[MEMBER_ROOM]
    cdef AddressC address
    cdef const uint8_t *end = p + n
    cdef const uint8_t *port = NULL
    if n >= MEMBER_ROOM:
        return False
    if n and p[0] == c"[":
        p += 1
        end = <const uint8_t *>memchr(p, c"]", n - 1)
        if end is NULL:
            return False
        n -= end + 2 - p
        port = end + 1
        if n and port[0] != c":":
            return False
    else:
        port = <const uint8_t *>memchr(p, c":", n)
        if port is not NULL and memchr(port + 1, c":", end - port - 1) is NULL:
            n = end - port
            end = port
        else:
            n = 0           # no port: no colon, or those of an IPv6 address
    if n and (n == 1 or not text_is(port + 1, n - 1, TEXT_DIGIT)):
        return False
    memcpy(text, p, end - p)
    text[end - p] = 0
    memset(&address, 0, sizeof(address))
    return io_address(&address, text, 0) == RC_OK and host_of_peer(host, &address.address)

cdef bint network_holds(const NetworkC *network, const HostC *host) noexcept nogil:
    # ::/0 is every IPv6 address and no IPv4 one.
    cdef int whole = network.bits >> 3
    cdef int rest = network.bits & 7
    return (host_is_v4(&network.host) == host_is_v4(host) and memcmp(network.host.bytes, host.bytes, whole) == 0
            and (not rest or (network.host.bytes[whole] ^ host.bytes[whole]) >> (8 - rest) == 0))

cdef bint trust_host(const TrustC *trust, const HostC *host) noexcept nogil:
    cdef int i
    for i in range(trust.count):
        if network_holds(&trust.networks[i], host):
            return True
    return False

cdef bint trust_peer(const TrustC *trust, const sockaddr_storage *peer) noexcept nogil:
    cdef HostC host
    return trust_host(trust, &host) if host_of_peer(&host, peer) else trust.local

cdef void trust_origin(const TrustC *trust, HeadC *head, HostC *origin) noexcept nogil:
    # Who asked, as a trusted peer tells: the last member of X-Forwarded-For that is not trusted, or the first of all where all
    # are. A member that is no address ends the way there. *origin is untouched where there is no address at all.
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef FieldC *field
    cdef HostC host
    cdef size_t n
    cdef int i
    if not (head.kinds >> FIELD_FORWARDED_FOR) & 1:
        return
    for i in range(head.count - 1, -1, -1):
        field = &head.fields[i]
        if field.kind != FIELD_FORWARDED_FOR or field.dropped:
            continue
        end = field.value + field.value_length
        while end > field.value:
            p = end
            while p > field.value and (p - 1)[0] != c",":
                p -= 1
            n = end - p
            while n and (p[0] == c" " or p[0] == c"\t"):
                p += 1
                n -= 1
            while n and (p[n - 1] == c" " or p[n - 1] == c"\t"):
                n -= 1
            end = p
            while end > field.value and (end - 1)[0] != c",":
                end -= 1
            end -= end > field.value
            if n == 0:
                continue        # an empty member is none (RFC 9110 section 5.6.1)
            if not host_read(&host, p, n):
                return
            origin[0] = host
            if not trust_host(trust, &host):
                return
