# buf: the 8 KB buffer, the slabs that buffers and structs come from, and the chain of buffers that waits for a socket.
#
# A buffer belongs to exactly one holder: the worker (its hot buffer), a chain, a connection, or its slab. Nothing here
# touches a descriptor. Slabs take memory from the system only when they are empty, and keep it: in steady state nothing
# is allocated.

cdef enum:
    BUF_SIZE = 8192
    BUFS_A_BLOCK = 32       # 256 KB a mapping
    BUFS_WARM = 64          # free buffers that keep their pages; the pages of others go back to the system
    ITEMS_A_BLOCK = 64

#   data            start               end             BUF_SIZE
#    | taken already | waits to be taken | room to fill  |
#    0     <=      start      <=        end     <=    BUF_SIZE
cdef struct BufC:
    uint8_t *data
    BufC *next
    int start
    int end

cdef struct BufBlockC:
    BufBlockC *next
    void *pages
    BufC bufs[BUFS_A_BLOCK]

cdef struct BufSlabC:
    BufC *warm          # free, pages resident
    BufC *cold          # free, pages given back
    BufBlockC *blocks
    int warm_count
    uint64_t made       # buffers that exist
    uint64_t held       # buffers that somebody holds

cdef int buf_grow(BufSlabC *slab) noexcept nogil:
    # Maps one more block. RC_OK or -ENOMEM.
    cdef BufBlockC *block = <BufBlockC *>malloc(sizeof(BufBlockC))
    cdef int i
    if block is NULL:
        return -ENOMEM
    block.pages = mmap(NULL, BUF_SIZE * BUFS_A_BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if block.pages == MAP_FAILED:
        free(block)
        return -ENOMEM
    block.next = slab.blocks
    slab.blocks = block
    for i in range(BUFS_A_BLOCK):
        block.bufs[i].data = <uint8_t *>block.pages + i * BUF_SIZE
        sys_poison(block.bufs[i].data, BUF_SIZE)
        block.bufs[i].next = slab.cold
        slab.cold = &block.bufs[i]
    sys_add_counter(&slab.made, BUFS_A_BLOCK)
    return RC_OK

cdef BufC *buf_get(BufSlabC *slab) noexcept nogil:
    # An empty buffer, or NULL when the system has no memory.
    cdef BufC *buf = slab.warm
    if buf is not NULL:
        slab.warm = buf.next
        slab.warm_count -= 1
    else:
        if slab.cold is NULL and buf_grow(slab) != RC_OK:
            return NULL
        buf = slab.cold
        slab.cold = buf.next
    buf.next = NULL
    buf.start = 0
    buf.end = 0
    sys_unpoison(buf.data, BUF_SIZE)
    sys_add_counter(&slab.held, 1)
    return buf

cdef void buf_put(BufSlabC *slab, BufC *buf) noexcept nogil:
    # Gives a buffer back. After a wave of blocked clients its pages return to the system, the mapping stays.
    sys_add_counter(&slab.held, <uint64_t>-1)
    sys_poison(buf.data, BUF_SIZE)
    if slab.warm_count < BUFS_WARM:
        buf.next = slab.warm
        slab.warm = buf
        slab.warm_count += 1
        return
    madvise(buf.data, BUF_SIZE, MADV_DONTNEED)
    buf.next = slab.cold
    slab.cold = buf

cdef void buf_free_all(BufSlabC *slab) noexcept nogil:
    cdef BufBlockC *block
    while slab.blocks is not NULL:
        block = slab.blocks
        slab.blocks = block.next
        sys_unpoison(block.pages, BUF_SIZE * BUFS_A_BLOCK)
        munmap(block.pages, BUF_SIZE * BUFS_A_BLOCK)
        free(block)

# A slab of equal structs; the first word of a free one links it to the next.
cdef struct SlabC:
    void *available
    void *blocks
    size_t size

cdef void *slab_get(SlabC *slab) noexcept nogil:
    # A zeroed struct, or NULL when the system has no memory.
    cdef uint8_t *block
    cdef void *item
    cdef int i
    if slab.available is NULL:
        block = <uint8_t *>malloc(sizeof(void *) * 2 + slab.size * ITEMS_A_BLOCK)
        if block is NULL:
            return NULL
        (<void **>block)[0] = slab.blocks
        slab.blocks = block
        for i in range(ITEMS_A_BLOCK):
            item = block + sizeof(void *) * 2 + slab.size * i
            slab_put(slab, item)
    item = slab.available
    slab.available = (<void **>item)[0]
    sys_unpoison(item, slab.size)
    memset(item, 0, slab.size)
    return item

cdef void slab_put(SlabC *slab, void *item) noexcept nogil:
    (<void **>item)[0] = slab.available
    slab.available = item
    sys_poison(<uint8_t *>item + sizeof(void *), slab.size - sizeof(void *))

cdef void slab_free_all(SlabC *slab) noexcept nogil:
    cdef void *block
    while slab.blocks is not NULL:
        block = slab.blocks
        slab.blocks = (<void **>block)[0]
        free(block)

# Bytes that wait for a socket, in order. While `replayable` is set the bytes that were sent stay too, so that the chain can be
# rewound and sent again; `incomplete` says that some of them are gone.
#
#   first ... at ... last
#   | sent, kept | unsent |     `at` is NULL when nothing is unsent
cdef struct ChainC:
    BufC *first
    BufC *last
    BufC *at
    int at_pos          # offset in at.data of the first unsent byte
    uint32_t unsent     # bytes
    uint32_t total      # bytes, the sent and kept ones included
    uint8_t replayable
    uint8_t incomplete

cdef int chain_take(ChainC *chain, BufC *buf) noexcept nogil:
    # Appends a whole buffer, no copy; the chain owns it from now on. RC_OK.
    if chain.last is NULL:
        chain.first = buf
    else:
        chain.last.next = buf
    chain.last = buf
    buf.next = NULL
    if chain.at is NULL:
        chain.at = buf
        chain.at_pos = buf.start
    chain.unsent += buf.end - buf.start
    chain.total += buf.end - buf.start
    return RC_OK

cdef int chain_copy(ChainC *chain, BufSlabC *slab, const uint8_t *data, size_t n) noexcept nogil:
    # Appends a copy of `n` bytes. RC_OK or -ENOMEM; on -ENOMEM a part may have been appended.
    cdef size_t part
    cdef BufC *buf
    while n > 0:
        buf = chain.last
        if buf is NULL or buf.end == BUF_SIZE:
            buf = buf_get(slab)
            if buf is NULL:
                return -ENOMEM
            chain_take(chain, buf)
        part = BUF_SIZE - buf.end
        if part > n:
            part = n
        memcpy(buf.data + buf.end, data, part)
        if chain.at is NULL:
            chain.at = buf
            chain.at_pos = buf.end
        buf.end += <int>part
        chain.unsent += <uint32_t>part
        chain.total += <uint32_t>part
        data += part
        n -= part
    return RC_OK

cdef void chain_drop_sent(ChainC *chain, BufSlabC *slab) noexcept nogil:
    # Gives back the buffers in which everything was sent.
    cdef BufC *buf
    while chain.first is not chain.at:
        buf = chain.first
        chain.first = buf.next
        chain.total -= buf.end - buf.start
        chain.incomplete = True
        buf_put(slab, buf)
    if chain.first is NULL:
        chain.last = NULL
    elif chain.at_pos > chain.first.start:
        chain.total -= chain.at_pos - chain.first.start
        chain.first.start = chain.at_pos
        chain.incomplete = True

cdef void chain_sent(ChainC *chain, BufSlabC *slab, size_t n) noexcept nogil:
    # Moves on by `n` bytes that a socket took.
    cdef size_t part
    chain.unsent -= <uint32_t>n
    while chain.at is not NULL:
        part = chain.at.end - chain.at_pos
        if n < part:
            chain.at_pos += <int>n
            break
        n -= part
        chain.at = chain.at.next
        if chain.at is not NULL:
            chain.at_pos = chain.at.start
    if not chain.replayable:
        chain_drop_sent(chain, slab)

cdef void chain_forget(ChainC *chain, BufSlabC *slab) noexcept nogil:
    # Nothing will be sent again: keeps only what is unsent.
    chain.replayable = False
    chain_drop_sent(chain, slab)

cdef void chain_rewind(ChainC *chain) noexcept nogil:
    # Makes everything unsent again; only where nothing was lost.
    chain.at = chain.first
    if chain.at is not NULL:
        chain.at_pos = chain.at.start
    chain.unsent = chain.total

cdef void chain_clear(ChainC *chain, BufSlabC *slab) noexcept nogil:
    cdef BufC *buf
    while chain.first is not NULL:
        buf = chain.first
        chain.first = buf.next
        buf_put(slab, buf)
    memset(chain, 0, sizeof(ChainC))

cdef int chain_replace(ChainC *chain, BufSlabC *slab, size_t at, size_t length, const uint8_t *data, size_t n) noexcept nogil:
    # Puts data[0:n] in the place of `length` bytes, `at` bytes behind the beginning of a chain of which nothing was sent. RC_OK, or
    # -ENOMEM: then nothing has changed. The buffer where that is gets another one in its place, so that what was one send stays one.
    cdef ChainC made
    cdef BufC **link = &chain.first
    cdef BufC *buf
    cdef BufC *following
    cdef size_t part
    cdef size_t left = length
    while <size_t>(link[0].end - link[0].start) < at:
        at -= link[0].end - link[0].start
        link = &link[0].next
    buf = link[0]
    part = buf.end - buf.start - at
    if part > left:
        part = left
    memset(&made, 0, sizeof(made))
    if (chain_copy(&made, slab, buf.data + buf.start, at) != RC_OK or chain_copy(&made, slab, data, n) != RC_OK
            or chain_copy(&made, slab, buf.data + buf.start + at + part, buf.end - buf.start - at - part) != RC_OK):
        chain_clear(&made, slab)
        return -ENOMEM
    left -= part
    following = buf.next
    while left:
        part = following.end - following.start
        if part > left:
            following.start += <int>left
            break
        left -= part
        buf.next = following.next
        buf_put(slab, following)
        following = buf.next
    if made.first is NULL:
        buf.end = buf.start         # nothing is left of it
        made.first = made.last = buf
    else:
        buf_put(slab, buf)
        link[0] = made.first
        made.last.next = following
    if following is NULL:
        chain.last = made.last
    chain.at = chain.first
    chain.at_pos = chain.first.start
    chain.unsent = chain.total = <uint32_t>(chain.total - length + n)
    return RC_OK
