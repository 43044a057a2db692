# heap: a pairing heap (Fredman, Sedgewick, Sleator and Tarjan, 1986): the least first, and any member can leave. The members hold the
# links, so that nothing is allocated.

cdef struct HeapC:
    int64_t key
    uint64_t order          # of equal keys: who came first
    HeapC *child            # the first of them
    HeapC *next             # the parent's next child
    HeapC *back             # the child before it, or the parent of the first one; NULL at the root

cdef inline bint heap_before(const HeapC *one, const HeapC *other) noexcept nogil:
    return one.key < other.key or (one.key == other.key and one.order < other.order)

cdef HeapC *heap_meld(HeapC *one, HeapC *other) noexcept nogil:
    # One heap of two, each of which may be empty.
    cdef HeapC *swapped
    if one is NULL or other is NULL:
        return other if one is NULL else one
    if heap_before(other, one):
        swapped = one
        one = other
        other = swapped
    other.back = one
    other.next = one.child
    if one.child is not NULL:
        one.child.back = other
    one.child = other
    return one

cdef void heap_put(HeapC **root, HeapC *member) noexcept nogil:
    member.child = NULL
    member.next = NULL
    member.back = NULL
    root[0] = heap_meld(root[0], member)

cdef HeapC *heap_gather(HeapC *first) noexcept nogil:
    # One heap of the children of a member that leaves: by pairs, and then the pairs, the last first.
    cdef HeapC *pairs = NULL
    cdef HeapC *root = NULL
    cdef HeapC *one
    cdef HeapC *other
    while first is not NULL:
        one = first
        other = one.next
        first = NULL
        if other is not NULL:
            first = other.next
            other.next = NULL
            other.back = NULL
        one.next = NULL
        one.back = NULL
        one = heap_meld(one, other)
        one.next = pairs
        pairs = one
    while pairs is not NULL:
        one = pairs
        pairs = one.next
        one.next = NULL
        root = heap_meld(root, one)
    return root

cdef void heap_take(HeapC **root, HeapC *member) noexcept nogil:
    # A member leaves.
    if member.back is NULL:
        root[0] = heap_gather(member.child)
        return
    if member.back.child is member:
        member.back.child = member.next
    else:
        member.back.next = member.next
    if member.next is not NULL:
        member.next.back = member.back
    root[0] = heap_meld(root[0], heap_gather(member.child))
