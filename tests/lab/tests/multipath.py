"""Two paths to one LUN under dm-multipath; one is cut and mended under fio with verification: no error reaches it."""
from machine import Guest

TIER = "full"


def setup(lab):
    lab.target(networks=2, cores=2).ram("Ram0", 64).serve(["Ram0"])


def step_cut(lab, link):
    lab.guest.qmp.command("set_link", name=link, up=False)


def step_mend(lab, link):
    lab.guest.qmp.command("set_link", name=link, up=True)


GUEST = Guest(
    networks=2,
    script=r"""
. /lab/guest/lib.sh
iscsi_start
sed -i -e 's/^node.conn\[0\].timeo.noop_out_interval.*/node.conn[0].timeo.noop_out_interval = 5/' \
    -e 's/^node.conn\[0\].timeo.noop_out_timeout.*/node.conn[0].timeo.noop_out_timeout = 10/' \
    -e 's/^node.session.timeo.replacement_timeout.*/node.session.timeo.replacement_timeout = 5/' /etc/iscsi/iscsid.conf
cat >/etc/multipath.conf <<EOF
defaults {
    user_friendly_names yes
    find_multipaths no
    polling_interval 2
    path_grouping_policy multibus
    path_checker tur
    no_path_retry queue
}
blacklist {
    devnode "^vd"
}
EOF
modprobe -a dm_multipath dm_service_time
must multipathd
must discover
same "$(iscsiadm -m node | wc -l)" 2 "the number of portals that discovery tells"
must iscsiadm -m node -T "$LAB_IQN" --loginall=all
map=/dev/mapper/mpatha
within 120 test -b $map
paths() { multipathd show paths format '%d %t' | grep -c "$1"; }
paths_are() { [ "$(paths "$1")" -eq "$2" ]; }
within 120 paths_are active 2
multipath -ll
ids=$(for disk in $(disks 0); do /usr/lib/udev/scsi_id -g -p 0x83 "$disk" || sg_vpd -p di -q "$disk" | md5sum; done | sort -u | wc -l)
same "$ids" 1 "the number of identities of the two paths"
ports=$(for disk in $(disks 0); do sg_vpd -p di_port "$disk" | grep -i 'relative target port' ; done | sort -u)
echo "$ports"
for link in nic1 nic0; do
    step "cut $link under load"
    fio --eta=never --name=load --filename=$map --ioengine=libaio --direct=1 --rw=randwrite --bs=16k --iodepth=16 --size=100% --loops=400 --time_based --runtime=60 \
        --verify=crc32c --verify_fatal=1 --output=/tmp/fio &
    load=$!
    sleep 5
    host cut $link
    within 120 paths_are failed 1
    multipathd show paths
    sleep 5
    paths_are active 1 || fail "the other path is not active"
    host mend $link
    within 180 paths_are active 2
    wait $load || { cat /tmp/fio; fail "fio saw an error while $link was cut and mended"; }
done
sync
must fio --eta=never --name=after --filename=$map --ioengine=libaio --direct=1 --rw=randwrite --bs=64k --iodepth=16 --size=100% --verify=crc32c --verify_fatal=1 --output=/tmp/fio
within 60 multipath -f mpatha
must iscsiadm -m node --logoutall=all
"""
)
