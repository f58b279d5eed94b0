# SPDX-License-Identifier: BSD-3-Clause
# A real Ceph cluster for one shell test: a monitor and an OSD on bluestore, without a manager.
#
# A test sources this file after functions.sh and calls start_ceph.  The cluster lives in $dir/ceph,
# listens on 127.0.0.1 at ports that were free, and ends with the test.  CEPH_CONF is exported, so
# `rbd`, `ceph` and the plugin find the cluster.  Authentication is off, except after
# `start_ceph cephx`; then add_user adds users.
export PATH=$PATH:/usr/sbin
unset CEPH_ARGS
ceph=$dir/ceph

# free_port: prints a port below the kernel's own range (ip_local_port_range begins at 32768), and
# so that the 60 ports after it are free as well.
free_port() {
    local port used
    used=$(ss -Htln | awk '{ sub(".*:", "", $4); print $4 }')
    while :; do
        port=$((12000 + RANDOM % 320 * 64))
        awk -v from=$port '$1 >= from && $1 < from + 64 { exit 1 }' <<<"$used" && break
    done
    echo $port
}

# The test may set lease_ratio (of 20 s): with 0.1 the placement groups of an OSD that was killed go
# on 2 s after its start instead of 16 s.  With it an OSD that was frozen for longer than the lease
# once did not go on for minutes, so tests that freeze an OSD leave the lease as it is.
ceph_conf() {
    local port=$1 auth=$2
    cat <<C
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$port/0,v1:127.0.0.1:$((port + 1))/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_port_min = $((port + 2))
ms_bind_port_max = $((port + 60))
auth_cluster_required = $auth
auth_service_required = $auth
auth_client_required = $auth
keyring = $ceph/keyring
run_dir = $ceph/run
admin_socket = $ceph/run/\$name.\$pid.asok
log_file = $ceph/log/\$name.log
crash_dir = $ceph/crash
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_pool_default_read_lease_ratio = ${lease_ratio:-0.8}
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
[client]
admin_socket =
log_file =
[mon]
mon_data = $ceph/mon
keyring = $ceph/mon/keyring
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_cluster_log_file = $ceph/log/cluster.log
auth_allow_insecure_global_id_reclaim = false
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
[osd]
osd_data = $ceph/osd.\$id
keyring = $ceph/osd.\$id/keyring
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = 4294967296
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
osd_memory_target = 939524096
osd_client_watch_timeout = 5
osd_fast_shutdown = false
C
}

osds_are_up() { timeout 20 ceph osd stat -f json 2>/dev/null | grep -q "\"num_up_osds\":$1"; }

# make_osd ID: OSDs are numbered from 0.
make_osd() {
    local uuid
    uuid=$(cat /proc/sys/kernel/random/uuid)
    mkdir "$ceph/osd.$1"
    {
        timeout 60 ceph --connect-timeout 50 osd new "$uuid" "$1"
        [ "$auth" = none ] || timeout 60 ceph auth get-or-create "osd.$1" \
            mon 'allow profile osd' osd 'allow *' -o "$ceph/osd.$1/keyring"
        timeout 60 ceph-osd --mkfs -i "$1" --osd-uuid "$uuid" --no-mon-config
    } >"$ceph/log/osd-mkfs.out" 2>&1 || fail_with "$ceph/log/osd-mkfs.out" "no OSD"
}

# start_osd [ID]: starts the OSD, again after kill_osd; sets $osd.  The cluster has no OSD of a
# higher number.
start_osd() {
    ceph-osd -f -i "${1:-0}" </dev/null >>"$ceph/log/osd.out" 2>&1 &
    osd=$!
    pids+=("$osd")
    wait_for 60 osds_are_up $((${1:-0} + 1))
}

# add_osd: makes and starts a second OSD; sets $osd.
add_osd() {
    make_osd 1
    start_osd 1
}

# pool_on_osd POOL ID: the objects of the pool lie on this OSD only.
pool_on_osd() {
    timeout 60 ceph osd crush rm-device-class "osd.$2"
    timeout 60 ceph osd crush set-device-class "class$2" "osd.$2"
    timeout 60 ceph osd crush rule create-replicated "rule$2" default osd "class$2"
    timeout 60 ceph osd pool set "$1" crush_rule "rule$2"
} >>"$ceph/log/pools.out" 2>&1
kill_osd() {
    kill -9 "$osd"
    wait "$osd" 2>/dev/null || true
}
# freeze_osd, thaw_osd: the OSD answers nothing, for as long as the test likes.
freeze_osd() { suspend "$osd"; }
thaw_osd() { kill -CONT "$osd"; }

# start_ceph [cephx]: starts the cluster, with an empty pool `rbd`; sets $auth.
start_ceph() {
    local program port fsid
    auth=${1:-none}
    for program in ceph-mon ceph-osd ceph rbd; do
        command -v $program >/dev/null || skip "$program is not installed"
    done
    mkdir -p "$ceph"/{run,log,crash,mon}
    port=$(free_port)
    fsid=$(cat /proc/sys/kernel/random/uuid)
    ceph_conf "$port" "$auth" >"$ceph/ceph.conf"
    export CEPH_CONF=$ceph/ceph.conf
    {
        monmaptool --create --clobber --fsid "$fsid" \
            --addv a "[v2:127.0.0.1:$port,v1:127.0.0.1:$((port + 1))]" "$ceph/monmap"
        ceph-authtool --create-keyring "$ceph/keyring" --gen-key -n mon. --cap mon 'allow *'
        ceph-authtool "$ceph/keyring" --gen-key -n client.admin --cap mon 'allow *' \
            --cap osd 'allow *'
        timeout 60 ceph-mon --mkfs -i a --monmap "$ceph/monmap" --keyring "$ceph/keyring"
    } >"$ceph/log/mkfs.out" 2>&1 || fail_with "$ceph/log/mkfs.out" "no monitor"
    ceph-mon -f -i a </dev/null >"$ceph/log/mon.out" 2>&1 &
    pids+=($!)
    make_osd 0
    start_osd
    make_pool rbd
}

# add_user NAME CAPABILITIES...: a user whose key is in the keyring of the configuration.
add_user() { timeout 60 ceph auth get-or-create "client.$1" "${@:2}" >>"$ceph/keyring"; }

# make_pool NAME
make_pool() {
    timeout 60 ceph osd pool create "$1" 8 8 replicated 2>/dev/null
    timeout 60 rbd pool init "$1"
}
