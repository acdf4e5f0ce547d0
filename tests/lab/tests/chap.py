"""CHAP, one-way and mutual, of discovery and of sessions; a wrong secret is refused on either side."""
from machine import Guest

TIER = "smoke"
ALICE, NODE = "a-secret-of-alice", "a-secret-of-the-node"


def setup(lab):
    target = lab.target()
    target.ram("Ram0", 16).ram("Ram1", 16)
    secret = {"user": "alice", "secret": ALICE, "muser": "node", "msecret": NODE}
    target.rpc("iscsi_create_auth_group", tag=1, secrets=[secret])
    target.serve(["Ram0"], require_chap=True, chap_group=1)
    target.add_node(["Ram1"], f"{lab.env['LAB_IQN']}-mutual", require_chap=True, mutual_chap=True, chap_group=1)
    lab.env.update(ALICE=ALICE, NODE=NODE)


def step_discovery_needs_chap(lab):
    lab.targets[0].rpc("iscsi_set_discovery_auth", require_chap=True, mutual_chap=True, chap_group=1)


GUEST = Guest(
    script=r"""
. /lab/guest/lib.sh
AUTHENTICATION_FAILED=24 # iscsiadm's exit status
iscsi_start
must discover
chap() { # secret, mutual secret or nothing
    node_set node.session.auth.authmethod CHAP
    node_set node.session.auth.chap_algs "$algorithms"
    node_set node.session.auth.username alice
    node_set node.session.auth.password "$1"
    if [ -n "${2:-}" ]; then
        node_set node.session.auth.username_in node
        node_set node.session.auth.password_in "$2"
    fi
}
refused() {
    local status=0
    node --login >/tmp/refused 2>&1 || status=$?
    [ $status -eq $AUTHENTICATION_FAILED ] || { cat /tmp/refused; fail "$1: the login ended with $status, not $AUTHENTICATION_FAILED"; }
    if has_disk 0; then fail "$1: there is a disk"; fi
}
works() {
    login
    want_disk 0
    must dd if="$disk" of=/dev/null bs=64k count=4 iflag=direct status=none
    logout
}
algorithms=MD5
step without CHAP
refused "a login without CHAP"
step a wrong secret
chap "not-the-secret-of-alice"
refused "a wrong secret"
step an unknown user
chap "$ALICE"
node_set node.session.auth.username mallory
refused "an unknown user"
for algorithms in MD5 SHA1 SHA256 SHA3-256; do
    step "one-way with $algorithms"
    chap "$ALICE"
    works
done
LAB_IQN=$LAB_IQN-mutual
algorithms=SHA3-256,SHA256,SHA1,MD5
step one way only, where the target asks for both
chap "$ALICE"
must_fail node --login
if has_disk 0; then fail "there is a disk"; fi
step mutual
chap "$ALICE" "$NODE"
works
step a target that does not know its secret
chap "$ALICE" "not-the-secret-of-the-node"
must_fail node --login
if has_disk 0; then fail "there is a disk"; fi
step discovery
host discovery_needs_chap
must_fail discover
db() { iscsiadm -m discoverydb -t sendtargets -p "$LAB_PORTAL" "$@"; }
db_set() { must db -o update -n "discovery.sendtargets.auth.$1" -v "$2"; }
must db -o new
db_set authmethod CHAP
db_set username alice
db_set password "not-the-secret-of-alice"
must_fail db --discover
db_set password "$ALICE"
db_set username_in node
db_set password_in "$NODE"
must db --discover
"""
)
