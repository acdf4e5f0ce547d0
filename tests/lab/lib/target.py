"""polluxd on the host side of a guest test."""
import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "lib"))
import daemon  # noqa: E402

RpcError = daemon.RpcError
IQN = daemon.IQN


class Target(daemon.Daemon):
    """A polluxd whose portals guests reach: portal N of the host's loopback is 10.0.(N + 1).2 in the guest's network N."""

    def __init__(self, path, networks=1, cores=1, mode="adaptive", extra=()):
        super().__init__(path, cores=cores, mode=mode, extra=extra)
        self.ports = [self.port] + [daemon.free_port() for _ in range(networks - 1)]
        self.config = None

    def portal(self, network=0):
        """The portal as a guest reaches it."""
        return f"10.0.{network + 2}.2:{self.ports[network]}"

    def ram(self, name, mebibytes, block_size=512):
        self.rpc("bdev_malloc_create", name=name, num_blocks=mebibytes * (1 << 20) // block_size, block_size=block_size)
        return self

    def file(self, name, mebibytes, block_size=512):
        """A sparse file in the daemon's folder as a disk."""
        path = self.folder / f"{name}.img"
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(mebibytes << 20)
        self.rpc("bdev_uring_create", name=name, filename=str(path), block_size=block_size)
        return self

    def serve(self, bdevs, iqn=IQN, **options):
        """A target node over all networks; its LUNs in the order of their names."""
        for network, port in enumerate(self.ports):
            host = f"10.0.{network + 2}.2"
            portal = {"host": "127.0.0.1", "port": str(port), "advertised_host": host}
            self.rpc("iscsi_create_portal_group", tag=network + 1, portals=[portal])
        self.rpc("iscsi_create_initiator_group", tag=1, initiators=["ANY"], netmasks=["127.0.0.0/8"])
        return self.add_node(bdevs, iqn, **options)

    def add_node(self, bdevs, iqn, **options):
        if not options.get("require_chap"):
            options.setdefault("disable_chap", True)
        maps = [{"pg_tag": network + 1, "ig_tag": 1} for network in range(len(self.ports))]
        luns = [{"bdev_name": name, "lun_id": number} for number, name in enumerate(bdevs)]
        self.rpc("iscsi_create_target_node", name=iqn, alias_name="lab", pg_ig_maps=maps, luns=luns, queue_depth=128, **options)
        return self

    def saved(self):
        """The configuration as a file would hold it."""
        names = [row["subsystem"] for row in self.rpc("framework_get_subsystems")]
        return {"subsystems": [{"subsystem": name, "config": self.rpc("framework_get_config", name=name, include_secrets=True)} for name in names]}

    def crash(self):
        """kill -9: nothing is flushed, nobody is told."""
        self.config = self.saved()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def restart(self):
        """Starts again as it was configured before it crashed."""
        return self.start(config=self.config)
