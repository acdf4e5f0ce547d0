# A guest that is a storage node: NVMe controllers by VFIO, polluxd on them. `. /lab/guest/node.sh` after lib.sh.

NODE_SOCKET=/run/pollux.sock
NODE_LOG=/lab/polluxd.log
rpc() { pollux -r $NODE_SOCKET rpc "$@"; }

# The PCI address of the NVMe controller with this serial number, while the kernel's driver has it.
nvme_address() {
    local controller
    modprobe nvme
    for controller in $(seq 1 100); do
        for controller in /sys/class/nvme/*; do
            [ "$(tr -d ' ' <"$controller/serial" 2>/dev/null)" = "$1" ] || continue
            basename "$(readlink -f "$controller/device")"
            return
        done
        sleep 0.1
    done
    return 1
}
# That of the model behind vfio-user, whose serial number is its own.
nvme_address_of_model() {
    local controller
    for controller in /sys/class/nvme/*; do
        if [ "$(cat "$controller/device/vendor")" != 0x1b36 ]; then
            basename "$(readlink -f "$controller/device")"
            return
        fi
    done
    return 1
}
# Takes controllers from the kernel: node_bind ADDRESS...
node_bind() { must /lab/scripts/bind bind "$@"; }
# Starts polluxd and waits until it answers: node_start [OPTION...]
node_start() {
    rm -f $NODE_SOCKET
    polluxd -r $NODE_SOCKET "$@" >>$NODE_LOG 2>&1 &
    node_pid=$!
    within 60 rpc spdk_get_version
}
# A controller's namespaces as bdevs: node_attach NAME ADDRESS
node_attach() { must rpc bdev_nvme_attach_controller name="$1" trtype=PCIe traddr="$2"; }
# One target node with these bdevs as LUN 0, 1, …: node_serve HOST BDEV...
node_serve() {
    local host=$1 luns="" number=0 bdev
    shift
    for bdev in "$@"; do
        luns="$luns${luns:+,}{\"bdev_name\":\"$bdev\",\"lun_id\":$number}"
        number=$((number + 1))
    done
    must rpc iscsi_create_portal_group tag=1 "portals=[{\"host\":\"$host\",\"port\":\"3260\"}]"
    must rpc iscsi_create_initiator_group tag=1 'initiators=["ANY"]' 'netmasks=["ANY"]'
    must rpc iscsi_create_target_node name="$LAB_IQN" alias_name=node 'pg_ig_maps=[{"pg_tag":1,"ig_tag":1}]' "luns=[$luns]" \
        queue_depth=128 disable_chap=true
}
# polluxd must still be there.
node_alive() { kill -0 "$node_pid" 2>/dev/null || { tail -n 30 $NODE_LOG; fail "polluxd has ended"; }; }
LAB_IQN=iqn.2026-01.io.pollux:node
LAB_PORTAL=127.0.0.1:3260
