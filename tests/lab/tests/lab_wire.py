"""The lab itself: three guests on one wire meet, exchange jumbo frames and data, and wait for each other."""
from machine import Guest

TIER = "full"

SCRIPT = r"""
. /lab/guest/lib.sh
same "$(cat /sys/class/net/lab0/mtu)" 9000 "the wire's MTU"
number=${LAB_GUEST#guest}
host barrier up
for other in 1 2 3; do
    [ $other = $number ] || must ping -c 3 -W 20 -M do -s 8900 -q 10.9.0.$other
done
head -c 1000000 /dev/zero | tr '\0' "$number" >/tmp/mine
socat -u FILE:/tmp/mine TCP-LISTEN:7000,reuseaddr &
host barrier listening
socat -u TCP:10.9.0.$((number % 3 + 1)):7000,retry=20 CREATE:/tmp/theirs
same "$(sort -u /tmp/theirs | fold -w 1 | sort -u)" "$((number % 3 + 1))" "what came over the wire"
same "$(stat -c %s /tmp/theirs)" 1000000 "how much came"
host barrier done
"""

GUESTS = [Guest(name=f"guest{number}", cpus=1, memory_mib=512, networks=0, wire=True, script=SCRIPT) for number in (1, 2, 3)]
