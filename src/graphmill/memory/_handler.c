/* NumPy's four functions for array data (NEP 49), for arrays that are to lie in an arena.

   Compiled without any headers of Python or NumPy, and loaded by numpy_handler.py, which fills a State and
   gives its address to NumPy as the context of all four functions. By hand:

       cc -O2 -std=c11 -fPIC -shared -o _handler.so _handler.c

   Why in C: NumPy frees arrays at any time, also while an exception is on its way, when no Python code may
   run. So `free` never calls Python. It notes the address, and the heap asks for it when it next has the
   chance to, by `graphmill_take`. And small arrays, of which there are many, must not pay for large ones.

   Who has the GIL: NumPy calls all but `free` with it held, its own default functions need that too. Nothing
   is taken for granted for `free`; the list that it writes to needs no lock. */

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* Python's own, all of its stable ABI. They are found when this is loaded into a Python process. */
extern void PyErr_Fetch(void **type, void **value, void **traceback);
extern void PyErr_Restore(void *type, void *value, void *traceback);
extern void *PyCapsule_GetContext(void *capsule);
extern void Py_DecRef(void *object);

/* One address that NumPy freed. */
typedef struct Freed {
    struct Freed *next;
    uintptr_t address;
} Freed;

/* Same as State in numpy_handler.py. */
typedef struct {
    /* What NumPy uses by default. */
    void *context;
    void *(*malloc)(void *context, size_t nbytes);
    void *(*calloc)(void *context, size_t count, size_t size);
    void *(*realloc)(void *context, void *memory, size_t nbytes);
    void (*free)(void *context, void *memory, size_t nbytes);
    /* Where the arenas lie; a length of 0 if there are fewer. */
    uintptr_t start[3];
    size_t length[3];
    /* Arrays from this size on are large. */
    size_t threshold;
    /* Python's answer to what it takes an arena for; NULL once Python ends. It writes the address of memory
       to `found`, or leaves it alone, or refuses it altogether (REFUSED). `old` is memory of an arena that is to be resized, or 0. */
    void (*answer)(uintptr_t old, size_t nbytes, size_t zeroed, uintptr_t *found);
    /* What was freed, the last one first. */
    _Atomic(Freed *) freed;
} State;

/* Tells a library apart that was compiled from another version of this file. */
const size_t graphmill_state_size = sizeof(State);

/* No address: there shall be no memory from elsewhere either. */
#define REFUSED ((void *)1)

static int is_in_arena(const State *state, const void *memory)
{
    uintptr_t address = (uintptr_t)memory; /* what lies below an arena becomes a huge distance */
    return address - state->start[0] < state->length[0] || address - state->start[1] < state->length[1] ||
           address - state->start[2] < state->length[2];
}

/* Ask Python. It may be asked while an exception is on its way: that one is put aside meanwhile, or it
   would be taken for the answer's own. The address comes through a variable, not as the return value: that
   is undefined if Python code is left by an exception. */
static void *ask(State *state, void *old, size_t nbytes, int zeroed)
{
    void (*answer)(uintptr_t, size_t, size_t, uintptr_t *) = state->answer;
    uintptr_t found = 0;
    void *type, *value, *traceback;

    if (!answer)
        return NULL;
    PyErr_Fetch(&type, &value, &traceback);
    answer((uintptr_t)old, nbytes, (size_t)zeroed, &found);
    PyErr_Restore(type, value, traceback);
    return (void *)found;
}

void *graphmill_malloc(void *context, size_t nbytes)
{
    State *state = context;
    void *memory = nbytes < state->threshold ? NULL : ask(state, NULL, nbytes, 0);
    if (memory == REFUSED)
        return NULL;
    return memory ? memory : state->malloc(state->context, nbytes);
}

void *graphmill_calloc(void *context, size_t count, size_t size)
{
    State *state = context;
    int overflows = size && count > SIZE_MAX / size; /* then the default function refuses */
    void *memory = overflows || count * size < state->threshold ? NULL : ask(state, NULL, count * size, 1);
    if (memory == REFUSED)
        return NULL;
    return memory ? memory : state->calloc(state->context, count, size);
}

/* Memory from elsewhere stays with whom it came from: nobody here knows how long it is. */
void *graphmill_realloc(void *context, void *memory, size_t nbytes)
{
    State *state = context;
    void *moved;

    if (is_in_arena(state, memory)) {
        moved = ask(state, memory, nbytes, 0);
        return moved == REFUSED ? NULL : moved;
    }
    return state->realloc(state->context, memory, nbytes);
}

/* The memory's content must stay as it is, because it may be about to be published: the note lies
   elsewhere. If there is no room even for that, the memory is not used again. */
void graphmill_free(void *context, void *memory, size_t nbytes)
{
    State *state = context;
    Freed *note;

    if (!is_in_arena(state, memory)) {
        state->free(state->context, memory, nbytes);
        return;
    }
    note = malloc(sizeof *note);
    if (!note)
        return;
    note->address = (uintptr_t)memory;
    note->next = atomic_load(&state->freed);
    while (!atomic_compare_exchange_weak(&state->freed, &note->next, note))
        ;
}

/* Take an address that was freed; 0 if there is none. Called by one thread at a time, so nobody else
   removes the first note between looking at it and taking it. */
uintptr_t graphmill_take(State *state)
{
    Freed *first = atomic_load(&state->freed);
    uintptr_t address;

    while (first && !atomic_compare_exchange_weak(&state->freed, &first, first->next))
        ;
    if (!first)
        return 0;
    address = first->address;
    free(first);
    return address;
}

/* The end of the capsule that NumPy knows all this by, and that every array holds: nobody needs any of it
   any more. The capsule's context is the Python object that owns it all. */
void graphmill_forget(void *capsule)
{
    Py_DecRef(PyCapsule_GetContext(capsule));
}
