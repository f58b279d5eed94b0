/* SPDX-License-Identifier: BSD-3-Clause */
/* The functions of librados and librbd, which are loaded when the first RBD image is used.
 *
 * The plugin is not linked with the two: they and what they need would cost each server 20 MB and
 * 30 ms at its start, also the servers of files, and could not be left out of a package.
 */
#ifndef AIODISK_CEPH_API_H
#define AIODISK_CEPH_API_H

#include <rbd/librbd.h>

/* clang-format off */
#define CEPH_API(X) \
    X(rados_buffer_free) X(rados_cluster_fsid) X(rados_conf_get) X(rados_conf_read_file) \
    X(rados_conf_set) X(rados_connect) X(rados_create) X(rados_decode_notify_response) \
    X(rados_free_notify_response) X(rados_get_instance_id) X(rados_ioctx_create) \
    X(rados_ioctx_destroy) X(rados_ioctx_get_id) X(rados_ioctx_set_namespace) X(rados_notify2) \
    X(rados_shutdown) X(rbd_aio_create_completion) X(rbd_aio_discard) X(rbd_aio_flush) \
    X(rbd_aio_get_return_value) X(rbd_aio_readv) X(rbd_aio_release) X(rbd_aio_write_zeroes) \
    X(rbd_aio_writev) X(rbd_close) X(rbd_diff_iterate2) X(rbd_get_features) X(rbd_get_flags) \
    X(rbd_get_id) X(rbd_get_overlap) X(rbd_get_size) X(rbd_get_stripe_count) \
    X(rbd_image_spec_list_cleanup) X(rbd_list2) X(rbd_lock_acquire) X(rbd_lock_get_owners) \
    X(rbd_lock_get_owners_cleanup) X(rbd_namespace_exists) X(rbd_open) X(rbd_open_read_only) \
    X(rbd_stat) X(rbd_watchers_list) X(rbd_watchers_list_cleanup)
/* clang-format on */

struct ceph_api {
#define X(name) __typeof__(name) *name;
    CEPH_API(X)
#undef X
};

/* Set by ceph_api_load, read by any thread that called it before. */
extern struct ceph_api ceph_api;

/* Loads the libraries, once.  They stay loaded until the process ends: librados is not made to be
 * unloaded.  Returns 0, or -ENOSYS and a line in `why`.  Any thread; blocks.
 */
int ceph_api_load(char *why, size_t why_size);

#endif
