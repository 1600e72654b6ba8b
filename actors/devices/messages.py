"""The messages of kubelet's device plugin API, v1beta1, as far as we use them.

Their descriptors are made here, from names and numbers, so that nothing has to be generated. Fields that are not listed
are skipped by whoever reads and absent in what we write, as protobuf has it.
"""

from typing import Any, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

VERSION: Final = "v1beta1"
HEALTHY: Final = "Healthy"

_STRING, _BOOL, _MESSAGE = (
    FieldDescriptorProto.TYPE_STRING,
    FieldDescriptorProto.TYPE_BOOL,
    FieldDescriptorProto.TYPE_MESSAGE,
)
_ONE, _MANY = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED

_MESSAGES: Final[dict[str, list[tuple[str, int, Any, Any, str]]]] = {
    "Empty": [],
    "DevicePluginOptions": [
        ("pre_start_required", 1, _BOOL, _ONE, ""),
        ("get_preferred_allocation_available", 2, _BOOL, _ONE, ""),
    ],
    "RegisterRequest": [
        ("version", 1, _STRING, _ONE, ""),
        ("endpoint", 2, _STRING, _ONE, ""),
        ("resource_name", 3, _STRING, _ONE, ""),
        ("options", 4, _MESSAGE, _ONE, "DevicePluginOptions"),
    ],
    "Device": [("ID", 1, _STRING, _ONE, ""), ("health", 2, _STRING, _ONE, "")],
    "ListAndWatchResponse": [("devices", 1, _MESSAGE, _MANY, "Device")],
    "PreStartContainerRequest": [("devices_ids", 1, _STRING, _MANY, "")],
    "PreStartContainerResponse": [],
    "ContainerAllocateRequest": [("devices_ids", 1, _STRING, _MANY, "")],
    "AllocateRequest": [("container_requests", 1, _MESSAGE, _MANY, "ContainerAllocateRequest")],
    "ContainerAllocateResponse": [],
    "AllocateResponse": [("container_responses", 1, _MESSAGE, _MANY, "ContainerAllocateResponse")],
}
"""Of each message its fields: name, number, type, how often, and of which message it is."""


def _pool() -> DescriptorPool:
    file = FileDescriptorProto(name="spiderpool/deviceplugin.proto", package=VERSION, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, label, of in fields:
            made = message.field.add(name=field, number=number, type=kind, label=label)
            if of:
                made.type_name = f".{VERSION}.{of}"
    pool = DescriptorPool()
    pool.Add(file)
    return pool


_POOL: Final = _pool()


def _class(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{VERSION}.{name}"))


Empty: Final = _class("Empty")
DevicePluginOptions: Final = _class("DevicePluginOptions")
RegisterRequest: Final = _class("RegisterRequest")
ListAndWatchResponse: Final = _class("ListAndWatchResponse")
PreStartContainerRequest: Final = _class("PreStartContainerRequest")
PreStartContainerResponse: Final = _class("PreStartContainerResponse")
AllocateRequest: Final = _class("AllocateRequest")
AllocateResponse: Final = _class("AllocateResponse")

REGISTER: Final = f"/{VERSION}.Registration/Register"
OPTIONS: Final = f"/{VERSION}.DevicePlugin/GetDevicePluginOptions"
LIST_AND_WATCH: Final = f"/{VERSION}.DevicePlugin/ListAndWatch"
ALLOCATE: Final = f"/{VERSION}.DevicePlugin/Allocate"
PRE_START: Final = f"/{VERSION}.DevicePlugin/PreStartContainer"
"""Paths of the calls: Register is kubelet's, the others are ours."""
