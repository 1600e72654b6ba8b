"""What we read of KubeVirt's objects, in a cluster that has it."""

from msgspec import Struct, field

from api.meta import ObjectMeta


class VirtualMachine(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A virtual machine as its owner wants it; it outlives its instances."""

    api_version: str = "kubevirt.io/v1"
    kind: str = "VirtualMachine"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)


class VirtualMachineInstance(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A virtual machine that runs, in one pod, or in two while it migrates."""

    api_version: str = "kubevirt.io/v1"
    kind: str = "VirtualMachineInstance"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)


class MigrationStatus(Struct, frozen=True, omit_defaults=True):
    """How far a migration has come."""

    phase: str = ""
    """Succeeded and Failed are its ends."""


class VirtualMachineInstanceMigration(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A move of an instance to another node. The new pod names it: `annotations.KUBEVIRT_MIGRATION_JOB`."""

    api_version: str = "kubevirt.io/v1"
    kind: str = "VirtualMachineInstanceMigration"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    status: MigrationStatus = field(default_factory=MigrationStatus)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status.phase in {"Succeeded", "Failed"}
