/* SPDX-License-Identifier: BSD-3-Clause */
/* USDT probes: places at which bpftrace, perf or SystemTap can look into a running server.
 *
 * A probe that nobody has attached is one no-op instruction.  The build has them if it finds
 * <sys/sdt.h> (Debian: systemtap-sdt-dev); otherwise the macros are empty.  plugin/probes/README.md
 * lists the probes and their arguments.  Any thread.
 */
#ifndef AIODISK_PROBE_H
#define AIODISK_PROBE_H

#ifdef HAVE_SDT
#define SDT_USE_VARIADIC
#include <sys/sdt.h>
#define PROBE(name, ...) STAP_PROBEV(aiodisk, name, ##__VA_ARGS__)
#else
#define PROBE(name, ...) ((void)0)
#endif

#endif
