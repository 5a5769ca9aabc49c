"""Shared memory: where values lie, who may write there, and when it is free again.

Knows bytes and addresses only: nothing of tasks, graphs, schedulers or worker processes.

::

    block      the records: where a buffer lies, what an encoded value is
    ranges     which parts of a segment are free (pure)
    segments   shared memory by name
    leftovers  names that tell who owns a segment; removal of what dead owners left
    arena      one segment: create, attach, map, reserve pages, give pages back
    spill      the file that blocks move to when memory is short, and where it lies
    heap       a process's own allocator in its arenas, and how its memory becomes a block
    numpy_handler  lets NumPy allocate from a heap
    pagemap    which private pages of this process were changed
    lease      inputs: private, writable views of blocks, and who still holds one
"""
