"""A dedicated machine: two NVMe controllers on two isolated cores, served to another machine's kernel initiator."""
from machine import Guest

TIER = "full"
SECONDS_MAX = 3600


def setup(lab):
    for name in ("disk0", "disk1"):
        with (lab.folder / f"{name}.img").open("wb") as file:
            file.truncate(256 << 20)
    lab.env["LAB_SECONDS"] = 60


NODE = Guest(
    name="node",
    iommu=True,
    hugepages=200,
    memory_mib=1536,
    cpus=3,
    wire=True,
    decides=False,
    append="isolcpus=managed_irq,domain,1-2 nohz_full=1-2 rcu_nocbs=1-2 irqaffinity=0",
    arguments=[
        "-drive", "if=none,id=disk0,file={work}/disk0.img,format=raw,cache=none",
        "-device", "nvme,id=nvme0,drive=disk0,serial=first",
        "-drive", "if=none,id=disk1,file={work}/disk1.img,format=raw,cache=none",
        "-device", "nvme,id=nvme1,drive=disk1,serial=second",
    ],
    script=r"""
. /lab/guest/lib.sh
. /lab/guest/node.sh
step take the controllers
first=$(nvme_address first) || fail "the kernel does not see the first controller"
second=$(nvme_address second) || fail "the kernel does not see the second controller"
node_bind "$first" "$second"
step doctor
pollux doctor --cores 1-2 --json >/lab/doctor.json
echo "doctor ends with $?"
python3 - <<'END' || fail "the doctor does not see what was set up"
import json
found = json.load(open("/lab/doctor.json"))

for finding in found["findings"]:
    print(f"{finding['status']:5} {finding['check']}: {finding['found']}")
END
step two reactors on two isolated cores
node_start -m '[1-2]' --mode poll --hugepages
node_attach Nvme0 "$first"
node_attach Nvme1 "$second"
node_serve 10.9.0.1 Nvme0n1 Nvme1n1
host barrier serving
host barrier loaded
# Every reactor's thread, before and after: switches, and what the RPC needs meanwhile.
switches() {
    for task in /proc/"$node_pid"/task/*; do
        case $(cat "$task/comm") in
            reactor*) echo "$(cat "$task/comm") $(awk '/Cpus_allowed_list/ {print $2}' "$task/status") $(awk '/ctxt_switches/ {n += $2} END {print n}' "$task/status")" ;;
        esac
    done
}
before=$(switches)
python3 - "$NODE_SOCKET" "$LAB_SECONDS" <<'END' || fail "RPC does not answer"
import json, socket, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
stream = socket.socket(socket.AF_UNIX)
stream.connect(path)
decoder, times, end, number = json.JSONDecoder(), [], time.monotonic() + seconds, 0
while time.monotonic() < end:
    number += 1
    begun = time.monotonic()
    stream.sendall(json.dumps({"jsonrpc": "2.0", "id": number, "method": "framework_get_reactors"}).encode())
    text = ""
    while True:
        text += stream.recv(65536).decode()
        try:
            decoder.raw_decode(text)
            break
        except ValueError:
            pass
    times.append((time.monotonic() - begun) * 1000)
    time.sleep(0.1)
times.sort()
print(f"RPC: {len(times)} calls, median {times[len(times) // 2]:.2f} ms, p99 {times[len(times) * 99 // 100]:.2f} ms, worst {times[-1]:.2f} ms")
END
after=$(switches)
echo "switches before: $before"
echo "switches after:  $after"
[ -n "$before" ] || fail "polluxd has no reactor threads"
if [ "$before" = "$after" ]; then
    echo "no context switch on the reactors' cores in $LAB_SECONDS s"
else
    fail "the reactors were switched away"
fi
rpc bdev_get_iostat >/lab/iostat.json
node_alive
host barrier measured
host barrier done
"""
)

CLIENT = Guest(
    name="client",
    wire=True,
    cpus=1,
    script=r"""
. /lab/guest/lib.sh
LAB_IQN=iqn.2026-01.io.pollux:node
LAB_PORTAL=10.9.0.1:3260
host barrier serving
iscsi_start
must discover
login
want_disk 0; disk0=$disk
want_disk 1; disk1=$disk
for disk in "$disk0" "$disk1"; do
    fio --name=verify --filename="$disk" --direct=1 --ioengine=libaio --iodepth=8 --rw=randrw --bs=4k --size=64m --verify=crc32c \
        --verify_fatal=1 --verify_backlog=64 --time_based --runtime=$((LAB_SECONDS + 30)) --eta=never --output=/tmp/fio.$(basename "$disk") &
done
sleep 5
host barrier loaded
host barrier measured
for job in $(jobs -p); do
    wait "$job" || { cat /tmp/fio.*; fail "fio found an error"; }
done
grep -hE "read:|write:" /tmp/fio.*
logout
host barrier done
"""
)

GUESTS = [NODE, CLIENT]
