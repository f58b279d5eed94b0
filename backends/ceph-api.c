/* SPDX-License-Identifier: BSD-3-Clause */
/* Loads librbd, and with it librados.  See ceph-api.h.
 *
 * Runs on the thread that uses the first RBD image.  Never unloads anything.
 */
#include "backends/ceph-api.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY "librbd.so.1"

struct ceph_api ceph_api;

static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static bool loaded; /* under load_lock */

/* Under load_lock.  dlsym(3) also finds what the library itself needs, so librados. */
static int load(char *why, size_t why_size)
{
    static const struct {
        const char *name;
        void **function;
    } functions[] = {
#define X(name) {#name, (void **)&ceph_api.name},
        CEPH_API(X)
#undef X
    };

    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) {
        snprintf(why, why_size, "Ceph's library cannot be loaded: %s", dlerror());
        return -ENOSYS;
    }
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        *functions[i].function = dlsym(library, functions[i].name);
        if (!*functions[i].function) {
            snprintf(why, why_size, "%s is too old: it has no %s", LIBRARY, functions[i].name);
            dlclose(library);
            return -ENOSYS;
        }
    }
    dlclose(library); /* RTLD_NODELETE: stays */
    loaded = true;
    return 0;
}

int ceph_api_load(char *why, size_t why_size)
{
    pthread_mutex_lock(&load_lock);
    int r = loaded ? 0 : load(why, why_size);
    pthread_mutex_unlock(&load_lock);
    return r;
}
