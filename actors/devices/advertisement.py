"""What a node advertises: from the rules of the configuration, the node's labels and its interfaces. Pure.

A rule for NICs takes the interfaces that its own globs take; one that several rules take is advertised as often as the
largest of them says. Sub-interfaces of a cloud are advertised where a provider is configured, and of several rules for
one resource the first that selects the node holds.
"""

import hashlib
from collections.abc import Iterable, Mapping

from msgspec import Struct

from api import networkresources
from api.configfile import NetworkResourcePlugin


class Interface(Struct, frozen=True, order=True):
    """An interface of the node."""

    name: str
    physical: bool
    """Whether a device is behind it."""


class Offer(Struct, frozen=True):
    """The devices of one resource: they are all alike, and always healthy."""

    stem: str
    count: int

    def ids(self) -> list[str]:
        """Of all, as many as `count`."""
        return [f"{self.stem}-{number}" for number in range(self.count)]

    def has(self, device: str) -> bool:
        """Whether it is one of them."""
        stem, _, number = device.rpartition("-")
        return (
            stem == self.stem
            and number.isascii()
            and number.isdigit()
            and str(int(number)) == number
            and int(number) < self.count
        )


class Advertisement(Struct, frozen=True):
    """What there is to say of a node."""

    offers: Mapping[str, Offer]
    """By the name of the resource."""
    problems: tuple[str, ...] = ()
    """Interfaces that rules take and that cannot be advertised, each with the reason."""


def advertised(
    plugin: NetworkResourcePlugin, *, provider: bool, labels: Mapping[str, str], interfaces: Iterable[Interface]
) -> Advertisement:
    """All that the node advertises. `provider` says whether a cloud's side assigns addresses."""
    if not plugin.device_plugin_affinity.node_selector.matches(labels):
        return Advertisement(offers={})
    offers: dict[str, Offer] = {}
    problems: list[str] = []
    rules = [rule for rule in plugin.resource_advertisement.master_nic.rules if rule.node_selector.matches(labels)]
    for interface in sorted(interfaces):
        counts = [rule.default_max_count for rule in rules if rule.takes(interface.name, physical=interface.physical)]
        if not counts:
            continue
        resource = networkresources.master_nic(interface.name)
        problem = networkresources.problem(resource)
        if problem:
            problems.append(f"interface {interface.name!r} is not advertised: {resource!r}: {problem}")
        else:
            offers[resource] = Offer(stem=resource.rpartition("/")[2], count=max(counts))
    if provider:
        for rule in plugin.resource_advertisement.sub_eni.rules:
            if rule.resource_name not in offers and rule.node_selector.matches(labels):
                stem = rule.resource_name.rpartition("/")[2]
                offers[rule.resource_name] = Offer(stem=stem, count=rule.default_max_count)
    return Advertisement(offers=offers, problems=tuple(problems))


def socket_name(resource: str, *, limit: int) -> str:
    """The file, of at most `limit` bytes, that kubelet finds a resource's plugin by in its folder of device plugins.

    Two resources never share one: where characters of the name itself were replaced, or it is too long, a digest tells.
    """
    plain = "".join("-" if letter in "/_." else letter for letter in resource)
    own = resource.removeprefix(f"{networkresources.DOMAIN}/")
    digest = hashlib.sha256(resource.encode()).hexdigest()[:16]
    names = [f"spiderpool-{plain}.sock"] if own != resource and not set(own) & set("_.") else []
    names.append(f"spiderpool-{plain}-{digest[:8]}.sock")
    return next((name for name in names if len(name.encode()) <= limit), f"spiderpool-{digest}.sock")
