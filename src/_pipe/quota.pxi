# quota: how many connections each client address has open, where a limit on that is set.
#
# The worker that accepts owns the table: it alone looks up, adds and frees. A worker that closes a connection only takes one
# off the count that the connection points to. An entry whose counts are 0 is freed when the table is next looked through at
# its place: in no other worker than the one that frees do counts rise from 0.

cdef enum:
    QUOTA_BUCKETS = 4096        # a power of two

cdef struct QuotaC:
    QuotaC *next
    uint64_t key[2]             # an IPv4 address, or the first 64 bits of an IPv6 address: what one site is given
    uint32_t served             # open connections; shared by threads, as `refused` is
    uint32_t refused            # of those that only get an error answer

cdef struct QuotaTableC:
    SlabC entries
    uint64_t seed               # keeps strangers from filling one bucket on purpose
    uint32_t swept              # the bucket that was looked through last
    QuotaC *buckets[QUOTA_BUCKETS]

cdef bint quota_key(const sockaddr_storage *peer, uint64_t *key) noexcept nogil:
    # The key of a peer's address; False where it has none, as on a Unix socket.
    cdef const in6_addr *v6
    key[0] = 0
    key[1] = 0
    if peer.ss_family == AF_INET:
        memcpy(&key[1], &(<const sockaddr_in *>peer).sin_addr, 4)
        return True
    if peer.ss_family != AF_INET6:
        return False
    v6 = &(<const sockaddr_in6 *>peer).sin6_addr
    if IN6_IS_ADDR_V4MAPPED(v6):
        memcpy(&key[1], <const uint8_t *>v6 + 12, 4)
    else:
        memcpy(&key[0], v6, 8)
        key[1] = 1 << 32                # apart from every IPv4 address
    return True

cdef void quota_sweep(QuotaTableC *table, uint32_t bucket) noexcept nogil:
    # Frees the entries of a bucket that count nothing.
    cdef QuotaC **link = &table.buckets[bucket]
    cdef QuotaC *quota
    while link[0] is not NULL:
        quota = link[0]
        if sys_load_acquire(&quota.served) or sys_load_acquire(&quota.refused):
            link = &quota.next
        else:
            link[0] = quota.next
            slab_put(&table.entries, quota)

cdef QuotaC *quota_find(QuotaTableC *table, const uint64_t *key) noexcept nogil:
    # The entry of an address, made where there is none; NULL where there is no memory. The pointer is good while one of
    # its counts is not 0, or until the next call.
    cdef uint64_t hash = (key[0] ^ table.seed) * <uint64_t>0x9E3779B97F4A7C15
    cdef uint32_t bucket
    cdef QuotaC *quota
    hash = (hash ^ (hash >> 32) ^ key[1] ^ (table.seed >> 7)) * <uint64_t>0xD6E8FEB86659FD93
    bucket = <uint32_t>(hash >> 40) & (QUOTA_BUCKETS - 1)
    # One more bucket a call: addresses that never come back are freed too.
    table.swept = (table.swept + 1) & (QUOTA_BUCKETS - 1)
    quota_sweep(table, table.swept)
    quota_sweep(table, bucket)
    quota = table.buckets[bucket]
    while quota is not NULL:
        if quota.key[0] == key[0] and quota.key[1] == key[1]:
            return quota
        quota = quota.next
    quota = <QuotaC *>slab_get(&table.entries)
    if quota is NULL:
        return NULL
    quota.key[0] = key[0]
    quota.key[1] = key[1]
    quota.next = table.buckets[bucket]
    table.buckets[bucket] = quota
    return quota
