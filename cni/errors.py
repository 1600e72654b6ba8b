"""What a container runtime is told when something fails: one class per cause, each with its CNI error code.

Codes 1 to 99 are those of the CNI specification 1.1.0, section "Error"; 100 and up are ours, 999 is the library's
"internal". A message names the field and the value, since it is all that a user sees in `kubectl describe pod`.
"""

from typing import Self


class CniError(Exception):
    """Anything that ends a CNI call; becomes `{"code": ..., "msg": ..., "details": ...}` on the plugin's stdout."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        """`code` is the CNI error code, `msg` one line for a user, `details` more for whoever looks closer."""
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details

    def about(self, subject: str) -> Self:
        """The same error, which says what it is about, unless that was said before."""
        if not self.msg.startswith(f"{subject}: "):
            self.msg = f"{subject}: {self.msg}"
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.code} {self.msg!r}>"

    def __str__(self) -> str:
        return f"{self.msg}: {self.details}" if self.details else self.msg


class IncompatibleVersion(CniError):
    """The configuration's cniVersion is none that we speak, or too old for the verb."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(1, msg, details)


class UnsupportedField(CniError):
    """The configuration asks for something that we know of and don't do."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(2, msg, details)


class UnknownContainer(CniError):
    """CHECK of a container for which no ADD succeeded here."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(3, msg, details)


class InvalidEnvironment(CniError):
    """A CNI_* environment variable is missing or malformed."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(4, msg, details)


class IoFailure(CniError):
    """Reading or writing failed: a journal entry, a request cut short."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(5, msg, details)


class DecodeFailure(CniError):
    """What came on stdin is no JSON object."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(6, msg, details)


class InvalidConfig(CniError):
    """The plugin's JSON is JSON, and says something that cannot be: wrong type, unknown mode, missing parent."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(7, msg, details)


class InvalidNetns(CniError):
    """CNI_NETNS is no network namespace, or it is the node's own."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(8, msg, details)


class TryAgainLater(CniError):
    """Nothing wrong with the request: overload, a restart, an unreachable controller or API server."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(11, msg, details)


class NotReady(CniError):
    """STATUS: an ADD would fail now."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(50, msg, details)


class LimitedConnectivity(CniError):
    """STATUS: an ADD would fail, and containers that exist may have limited connectivity."""

    CODE = 51

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(self.CODE, msg, details)


class KernelRefused(CniError):
    """The kernel said no. `details` are its own words where it had any."""

    def __init__(self, msg: str, details: str = "", *, errno: int = 0) -> None:
        """`errno` is the kernel's error number, for whoever has to tell cases apart."""
        super().__init__(100, msg, details)
        self.errno = errno


class InterfaceExists(CniError):
    """ADD: the namespace has an interface of that name already, and it is not ours."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(101, msg, details)


class StateDiffers(CniError):
    """CHECK: the container's network is not what ADD made."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(102, msg, details)


class AllocationRefused(CniError):
    """No address could be granted. `details` is the explanation: every pool considered and why it was rejected."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(103, msg, details)


class AddressInUse(CniError):
    """ADD: somebody else on the network uses an address that stays with the pod. `details` says why it stays."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(104, msg, details)


class GatewaySilent(CniError):
    """ADD: a gateway of the pod's is not there."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(105, msg, details)


class InternalError(CniError):
    """A defect of ours. The log has the traceback."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(999, msg, details)
