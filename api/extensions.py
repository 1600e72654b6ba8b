"""Objects by which Spiderpool is known to the API server itself, as far as its install and uninstall read them."""

from typing import Any

from msgspec import Struct, field

from api.meta import ObjectMeta


class Condition(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One line of an object's state."""

    type: str = ""
    status: str = ""
    """True, False or Unknown."""
    reason: str = ""
    message: str = ""


class CustomResourceDefinitionStatus(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Whether the kind is served."""

    conditions: list[Condition] | None = None


class CustomResourceDefinition(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A kind that the API server serves. Its schema is not modelled."""

    api_version: str = "apiextensions.k8s.io/v1"
    kind: str = "CustomResourceDefinition"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    status: CustomResourceDefinitionStatus = field(default_factory=CustomResourceDefinitionStatus)

    def condition(self, name: str) -> Condition:
        """The condition of this type; an empty one while there is none."""
        return next((each for each in self.status.conditions or () if each.type == name), Condition())


class ValidatingWebhookConfiguration(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Which objects the API server shows to a webhook before it takes them."""

    api_version: str = "admissionregistration.k8s.io/v1"
    kind: str = "ValidatingWebhookConfiguration"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    webhooks: list[dict[str, Any]] = []
    """As they are: whoever changes one thing of them writes all."""


class MutatingWebhookConfiguration(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Which objects the API server lets a webhook change before it takes them."""

    api_version: str = "admissionregistration.k8s.io/v1"
    kind: str = "MutatingWebhookConfiguration"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    webhooks: list[dict[str, Any]] = []
    """As they are."""
