/* SPDX-License-Identifier: BSD-3-Clause */
/* A library for LD_PRELOAD that leaks with each connection that the process accepts: the control of
 * endurance.sh, which must notice each kind of leak.
 *
 *   LEAK=descriptor   a descriptor of /dev/null
 *   LEAK=memory       4 KiB, all written
 *   LEAK=thread       a thread that sleeps
 *
 * Runs on the thread that accepts.
 */
#include <assert.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LEAK_SIZE 4096 /* bytes */

static void *sleeper(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return NULL;
}

static void leak(void)
{
    const char *what = getenv("LEAK");
    pthread_t thread;

    if (!what)
        return;
    if (strcmp(what, "descriptor") == 0) {
        assert(open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0);
    } else if (strcmp(what, "memory") == 0) {
        char *volatile lost = malloc(LEAK_SIZE);

        assert(lost);
        memset(lost, 0x5a, LEAK_SIZE);
    } else if (strcmp(what, "thread") == 0) {
        assert(pthread_create(&thread, NULL, sleeper, NULL) == 0);
    }
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    int (*next)(int, struct sockaddr *, socklen_t *, int) = dlsym(RTLD_NEXT, "accept4");
    int result = next(fd, address, length, flags);

    if (result >= 0)
        leak();
    return result;
}
