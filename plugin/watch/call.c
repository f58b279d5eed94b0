/* SPDX-License-Identifier: BSD-3-Clause */
/* Beginning, ending and looking at calls.  See call.h.
 *
 * call_begin and call_end run on nbdkit's threads, twice for each request: no lock, no system call
 * but the reading of the clock, which needs none.  call_look runs on the observer's thread.
 */
#include "plugin/watch/call.h"

#include <stdlib.h>

static uint64_t slow_ns; /* set once by call_set_slow */

/* The call that this thread used last.  It is the right one while the connection is the same. */
static _Thread_local struct {
    uint64_t list_id;
    struct call *call;
} mine;

/* For a thread that finds no memory for a call: the observer does not see its requests. */
static _Thread_local struct call unseen;

void call_set_slow(uint64_t ns)
{
    slow_ns = ns;
}

void call_list_init(struct call_list *list, const char *name, struct figures *figures)
{
    static _Atomic uint64_t last_id;

    list->id = atomic_fetch_add(&last_id, 1) + 1;
    list->name = name;
    list->figures = figures;
    atomic_init(&list->first, NULL);
}

void call_list_free(struct call_list *list)
{
    struct call *call = atomic_load(&list->first), *next;

    for (; call; call = next) {
        next = call->next;
        free(call);
    }
}

static struct call *add_call(struct call_list *list)
{
    struct call *call = calloc(1, sizeof *call);

    if (!call) {
        unseen.list = list;
        return &unseen;
    }
    call->list = list;
    call->next = atomic_load(&list->first);
    while (!atomic_compare_exchange_weak(&list->first, &call->next, call))
        ;
    mine.list_id = list->id;
    mine.call = call;
    return call;
}

struct call *call_begin(struct call_list *list, enum client_op op, uint64_t length, uint64_t offset)
{
    struct call *call = mine.list_id == list->id ? mine.call : add_call(list);

    atomic_store_explicit(&call->progress.op, op, memory_order_release);
    progress_here = &call->progress;
    /* Release: an observer that sees one of these sees the even turn before. */
    atomic_store_explicit(&call->progress.place, PLACE_PLUGIN, memory_order_release);
    atomic_store_explicit(&call->offset, offset, memory_order_release);
    atomic_store_explicit(&call->length, length, memory_order_release);
    PROBE(request_begin, &call->progress, op, offset, length, list->name);
    if (!list->figures && slow_ns == 0)
        return call;
    atomic_store_explicit(&call->start_ns, tally_now(), memory_order_release);
    uint64_t turn = atomic_load_explicit(&call->turn, memory_order_relaxed);
    atomic_store_explicit(&call->turn, turn + 1, memory_order_release);
    return call;
}

static unsigned error_index(int error)
{
    unsigned i = 0;

    /* The first one, EIO, stands for an errno that is not listed. */
    while (i < FIGURES_ERRORS && figures_errors[i].error != error)
        i++;
    return i < FIGURES_ERRORS ? i : 0;
}

static void count(const struct call *call, int error, uint64_t took_ns)
{
    struct tally *tally = call->list->figures->tally;
    enum client_op op = progress_op();

    tally_record(tally, FIGURES_TIME + op * TALLY_HISTOGRAM, took_ns);
    if (error)
        tally_add(tally, FIGURES_FAILED + op * FIGURES_ERRORS + error_index(error), 1);
    else
        tally_add(tally, FIGURES_BYTES + op,
                  atomic_load_explicit(&call->length, memory_order_relaxed));
}

uint64_t call_end(struct call *call, int error)
{
    struct figures *figures = call->list->figures;

    PROBE(request_end, &call->progress, progress_op(), error);
    if (!figures && slow_ns == 0) {
        progress_here = NULL;
        return 0;
    }
    uint64_t turn = atomic_load_explicit(&call->turn, memory_order_relaxed);
    bool was_named = atomic_load_explicit(&call->named_turn, memory_order_relaxed) == turn;
    uint64_t took_ns =
        figures || was_named
            ? tally_now() - atomic_load_explicit(&call->start_ns, memory_order_relaxed)
            : 0;
    if (figures)
        count(call, error, took_ns);
    progress_here = NULL;
    atomic_store_explicit(&call->turn, turn + 1, memory_order_release);
    return was_named ? took_ns : 0;
}

bool call_look(const struct call *call, uint64_t now_ns, struct call_view *view)
{
    view->turn = atomic_load_explicit(&call->turn, memory_order_acquire);
    if (view->turn % 2 == 0)
        return false;
    uint64_t start = atomic_load_explicit(&call->start_ns, memory_order_acquire);
    view->age_ns = now_ns > start ? now_ns - start : 0;
    view->offset = atomic_load_explicit(&call->offset, memory_order_acquire);
    view->length = atomic_load_explicit(&call->length, memory_order_acquire);
    view->place = atomic_load_explicit(&call->progress.place, memory_order_acquire);
    view->op = atomic_load_explicit(&call->progress.op, memory_order_acquire);
    return atomic_load_explicit(&call->turn, memory_order_relaxed) == view->turn;
}
