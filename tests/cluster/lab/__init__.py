"""The lab: see `Cluster`.

A machine of the lab is a process tree in namespaces of its own. A node's root is this machine's with a layer over it;
its programs come from the cache of `tests.servers`, so nothing is installed. All that is known of a cluster lies in
`<cache>/cluster/<name>/run`: any process can use it or take it down.
"""

from tests.cluster.lab.cluster import Cluster, take_down
from tests.cluster.lab.images import BUSYBOX, PAUSE
from tests.cluster.lab.jaeger import LabJaeger
from tests.cluster.lab.machine import Host, Machine
from tests.cluster.lab.node import Node
from tests.cluster.lab.pods import pod
from tests.cluster.lab.requirements import missing
from tests.cluster.lab.state import LabFailed, LabUnavailable

__all__ = [
    "BUSYBOX",
    "PAUSE",
    "Cluster",
    "Host",
    "LabFailed",
    "LabJaeger",
    "LabUnavailable",
    "Machine",
    "Node",
    "missing",
    "pod",
    "take_down",
]
