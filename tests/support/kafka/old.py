"""The oldest broker that pinstream is tested with: Kafka 2.8, beside a ZooKeeper of its own, as it was run then.

It speaks to the other brokers as one of 2.7 (``inter.broker.protocol.version``), as after an upgrade that was not
completed: so its topics have no ids, and it knows no group protocol but the classic one.
"""

from __future__ import annotations

import shutil
import signal
import subprocess

from tests.support.kafka.broker import OLD, RealBroker, free_ports
from tests.support.keeper import END_SECONDS

# What only brokers without a ZooKeeper have; with it this one would be started as such a broker.
_KRAFT = (
    "process.",
    "node.",
    "controller.",
    "broker.session.",
    "broker.heartbeat.",
    "group.consumer.",
    "share.",
)


class OldBroker(RealBroker):
    """Kafka 2.8, with the methods of `RealBroker`."""

    jars = OLD

    def __init__(self) -> None:
        super().__init__()
        self._zookeeper: subprocess.Popen[bytes] | None = None
        self._zookeeper_port = free_ports(1)[0]

    def stop(self) -> None:
        """See `RealBroker`; ZooKeeper is stopped last."""
        self._end(signal.SIGTERM)
        if self._zookeeper is not None:
            self._zookeeper.kill()  # its data goes with the broker's
            self._zookeeper.wait(END_SECONDS)
        shutil.rmtree(self.directory, ignore_errors=True)

    def properties(self) -> dict[str, str | int]:
        """See `RealBroker`."""
        found = {name: value for name, value in super().properties().items() if not name.startswith(_KRAFT)}
        for name in ("listeners", "advertised.listeners"):
            found[name] = str(found[name]).split(",CONTROLLER:")[0]
        return {
            **found,
            "broker.id": 1,
            "zookeeper.connect": f"127.0.0.1:{self._zookeeper_port}",
            "inter.broker.protocol.version": "2.7",
        }

    def _format(self, cluster: str = "") -> None:
        """Start ZooKeeper; no log directory has to be formatted."""
        settings = {
            "dataDir": self.directory / "zookeeper",
            "clientPort": self._zookeeper_port,
            "clientPortAddress": "127.0.0.1",
            "admin.enableServer": "false",
            "tickTime": 500,
        }
        file = self.directory / "zookeeper.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        with (self.directory / "zookeeper.log").open("ab") as sink:
            self._zookeeper = subprocess.Popen(
                self._java("org.apache.zookeeper.server.quorum.QuorumPeerMain", str(file)),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
