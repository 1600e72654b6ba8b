"""Marks on fields that only a CRD's schema has a word for, such as the width of a number that Go programs expect.

Where the API server can decide alone, by expressions (CEL), it needs no webhook for it. Servers before 1.25 know no
expressions and leave them out.
"""

from typing import Annotated, Any, Final

from msgspec import Meta

REQUIRED = Meta(extra={"crd": "required"})
"""The API server refuses an object without this field, though our Structs would read it."""

RULES: Final = "x-kubernetes-validations"

NEVER_CHANGES: Final[dict[str, Any]] = {RULES: [{"rule": "self == oldSelf", "message": "it never changes"}]}
"""Of a field: once there it stays as it is."""

FAMILY: Final = Meta(
    extra_json_schema={
        RULES: [
            {"rule": "!has(oldSelf.ipVersion) || has(self.ipVersion)", "message": "ipVersion never changes"},
            {
                "rule": "!has(self.ipVersion) || (self.ipVersion == 6) == self.subnet.contains(':')",
                "message": "ipVersion is not that of subnet",
            },
        ]
    }
)
"""Of a spec with a subnet: its family is the subnet's."""

type Network = Annotated[str, REQUIRED, Meta(extra_json_schema=NEVER_CHANGES)]
"""The CIDR of a LAN."""

type Count = Annotated[int, Meta(ge=0, extra_json_schema={"format": "int64"})]
"""How many addresses: at most what an int64 holds."""
