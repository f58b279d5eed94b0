/* SPDX-License-Identifier: BSD-3-Clause */
/* Flush and FUA of one image: a flush that returns 0 has made every earlier write durable, and
 * after a reported loss no flush returns 0 again.
 *
 * Modelled: image_flush, wait_for_slot, sync_slot, answer_joined, pass_on, lease_slot, return_slot,
 * write_dsync and image_write_through through the page cache (plugin/disk/flush.c); image_fail and
 * image_health (plugin/disk/health.c).  A critical section of the set's lock is one step.
 *
 * The kernel is the worst that fsync(2) allows.  A sync makes durable what was written before the
 * sync began, and nothing else.  LOSSES times a page is lost in writeback at any moment; each
 * descriptor reports that once, to the call on the descriptor that asks first.  SKIPS syncs are not
 * carried out (-EAGAIN).  REFUSALS FUA writes fail alone, as on a full filesystem.
 *
 * FLUSHES threads write and flush; FUAS threads write with FUA.  Each thread writes one page.
 */
#ifndef DESCRIPTORS
#define DESCRIPTORS 1
#endif
#ifndef FLUSHES
#define FLUSHES 3
#endif
#ifndef FUAS
#define FUAS 0
#endif
#ifndef LOSSES
#define LOSSES 1
#endif
#ifndef SKIPS
#define SKIPS 0
#endif
#ifndef REFUSALS
#define REFUSALS 0
#endif
#define THREADS (FLUSHES + FUAS)
#define BIT(i) (1 << (i))
#define ALL_FREE (BIT(DESCRIPTORS) - 1)

/* Results. */
#define OK 0
#define EIO 1
#define EAGAIN 2
#define NONE 255

/* The kernel.  Sets of pages are bit masks. */
byte cached;             /* written, and neither durable nor lost */
byte durable;
bool report[DESCRIPTORS]; /* the descriptor has a lost page to report */
byte syncs[DESCRIPTORS];  /* in progress on the descriptor */
byte losses = LOSSES, skips = SKIPS, refusals = REFUSALS;

byte written;  /* all pages whose write was answered */
bool reported; /* a flush or a FUA write has failed for a lost page */

/* struct flush_set and struct health. */
byte free = ALL_FREE;
chan waiters = [THREADS] of { byte }; /* first, last */
bool failed;                          /* image_health fails */

/* struct flush_waiter of each thread. */
byte given[THREADS] = NONE; /* slot */
bool done[THREADS];
byte answer[THREADS]; /* result */

/* The waiters that the leader with this descriptor has taken along: its variable `joined`. */
byte joined[DESCRIPTORS];

inline lowest_free(slot)
{
    slot = 0;
    do
    :: !(free & BIT(slot)) -> slot++
    :: else -> break
    od;
    free = free & ~BIT(slot)
}

/* Under lock. */
inline pass_on(slot)
{
    if
    :: len(waiters) == 0 -> free = free | BIT(slot)
    :: else ->
        waiters ? heir;
        assert(given[heir] == NONE && !done[heir]);
        given[heir] = slot;
        heir = 0
    fi
}

/* Under lock: the flushes that wait now came before this sync starts. */
inline take_joined()
{
    do
    :: len(waiters) > 0 -> waiters ? heir; joined[slot] = joined[slot] | BIT(heir)
    :: else -> break
    od;
    heir = 0
}

inline answer_joined(result)
{
    heir = 0;
    do
    :: heir < THREADS ->
        if
        :: joined[slot] & BIT(heir) ->
            assert(given[heir] == NONE && !done[heir]);
            answer[heir] = result;
            done[heir] = true
        :: else
        fi;
        heir++
    :: else -> break
    od;
    heir = 0;
    joined[slot] = 0
}

/* backend_run with REQUEST_FDATASYNC. */
inline fdatasync(slot, r)
{
    d_step {
        snapshot = cached;
        syncs[slot]++;
#ifndef SHARED_DESCRIPTOR
        assert(syncs[slot] == 1)
#endif
    };
    if
    :: d_step {
        durable = durable | (snapshot & cached);
        cached = cached & ~snapshot;
        r = (report[slot] -> EIO : OK);
        report[slot] = false
    }
    :: d_step { skips -> skips--; r = EAGAIN }
    fi;
    d_step { syncs[slot]--; snapshot = 0 }
}

inline image_flush(r)
{
    if
    :: failed -> r = EIO
    :: else ->
        d_step { /* under lock */
            r = OK;
            if
#ifdef SHARED_DESCRIPTOR
            :: true -> slot = 0
#endif
            :: free -> lowest_free(slot)
#ifdef JOIN_RUNNING
            :: else -> joined[0] = joined[0] | BIT(me); slot = NONE
#else
            :: else -> waiters ! me; slot = NONE
#endif
            fi;
            if
            :: slot != NONE -> take_joined()
            :: else
            fi
        };
        if
        :: slot != NONE
        :: else -> /* wait_for_slot */
            d_step {
                (given[me] != NONE || done[me]);
                if
                :: done[me] -> r = answer[me]; done[me] = false; answer[me] = OK
                :: else -> slot = given[me]; given[me] = NONE; take_joined()
                fi
            }
        fi;
        if
        :: slot != NONE ->
#ifdef RECORD_AFTER_RELEASE
            fdatasync(slot, r);
            d_step { answer_joined(r); pass_on(slot); slot = NONE };
            if
            :: r == EIO -> failed = true
            :: r == OK && failed -> r = EIO
            :: else
            fi
#else
            fdatasync(slot, r);
            if
            :: r == EIO -> failed = true /* sync_slot: image_fail, as is_verdict says */
#ifndef NO_HEALTH_CHECK
            :: r == OK && failed -> r = EIO
#endif
            :: else
            fi;
            d_step { answer_joined(r); pass_on(slot); slot = NONE }
#endif
        :: else
        fi
    fi
}

/* What image_flush returned 0 for: every write that was answered before the flush began. */
inline promise(r)
{
    assert(r != OK || (durable & before) == before);
    assert(r != OK || !was_reported);
    if
    :: r == EIO -> reported = true
    :: else
    fi
}

proctype flush(byte me)
{
    byte r, before, snapshot, heir;
    byte slot = NONE;
    bool was_reported;

    d_step { cached = cached | BIT(me); written = written | BIT(me) };
    d_step { before = written; was_reported = reported };
    image_flush(r);
    d_step { promise(r); r = 0; before = 0; was_reported = false }
}

#if FUAS > 0
#ifdef LEASE_LAST
#define MAY_LEASE free
#else
#define MAY_LEASE (free & (free - 1)) /* two are free */
#endif

/* image_write_through, with write_dsync. */
proctype fua(byte me)
{
    byte r, witness, snapshot, heir;
    byte slot = NONE, leased = NONE;

    if
    :: !failed ->
        d_step { /* lease_slot */
            if
            :: MAY_LEASE -> lowest_free(leased)
            :: else
            fi
        };
        if
        :: leased != NONE ->
            cached = cached | BIT(me); /* pwritev2 with RWF_DSYNC begins */
            d_step { syncs[leased]++; assert(syncs[leased] == 1) };
            if
            :: d_step {
                if
                :: cached & BIT(me) -> durable = durable | BIT(me); cached = cached & ~BIT(me)
                :: else
                fi;
                r = (report[leased] -> EIO : OK);
                report[leased] = false
            }
            :: d_step { refusals -> refusals--; cached = cached & ~BIT(me); r = EAGAIN }
            fi;
            syncs[leased]--;
#ifdef NO_WITNESS
            if
            :: r == OK && failed -> r = EIO
            :: else
            fi;
#else
            if
            :: r == OK && failed -> r = EIO
            :: r == OK && !failed
            :: else -> image_flush(witness); witness = 0
            fi;
#endif
            d_step { pass_on(leased); leased = NONE } /* return_slot */
        :: else ->
            cached = cached | BIT(me);
            image_flush(r)
        fi;
        d_step {
            assert(r != OK || (durable & BIT(me)));
            if
            :: r == OK -> written = written | BIT(me)
            :: r == EIO -> reported = true
            :: else
            fi;
            r = 0
        }
    :: else
    fi
}
#endif

/* Writeback loses a page: the page is clean afterwards, and no sync writes it again. */
proctype writeback()
{
    byte i;
    do
    :: losses && cached ->
        i = 0;
        do
        :: i < THREADS - 1 -> i++
        :: break
        od;
        atomic {
            if
            :: losses && (cached & BIT(i)) ->
                cached = cached & ~BIT(i);
                losses--;
                i = 0;
                do
                :: i < DESCRIPTORS -> report[i] = true; i++
                :: else -> break
                od
            :: else
            fi;
            i = 0
        }
    :: timeout -> break /* everybody else has ended, or is stuck */
    od;
    assert(_nr_pr == 2); /* nobody is stuck: init and this process are left */
    assert(free == ALL_FREE && len(waiters) == 0)
}

init
{
    byte i;
    atomic {
        run writeback();
        for (i : 0 .. FLUSHES - 1) {
            run flush(i)
        }
#if FUAS > 0
        for (i : FLUSHES .. THREADS - 1) {
            run fua(i)
        }
#endif
    }
}
