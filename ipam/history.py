"""Who had which address when: what an owner tells of every change that it has committed."""

from typing import Literal

from msgspec import Struct


class Change(Struct, frozen=True, gc=False):
    """One address that is held otherwise than before.

    Attributes:
        at: unix seconds.
        ip: canonical text without prefix length.
        what: `taken over` by a newer sandbox, or by the next pod of the same name; `kept` for that one.
        pod: `namespace/name`, of who has it now, or had it until now where it was released or quarantined. So the rest.
        uid: the pod's.
        nic: name of the interface inside the pod.
        node: where the sandbox is, or was.
        cid: first 12 hex digits of the sandbox's container id.
    """

    at: float
    ip: str
    what: Literal["granted", "taken over", "released", "kept", "quarantined"]
    pod: str
    uid: str
    nic: str
    node: str
    cid: str
