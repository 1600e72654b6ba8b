"""What a pod is given before it is stored: networks that it or its namespace asks for by a word, and what they need.

SpiderMultusConfigs say by a label of the same key which word they answer to. The pod is attached to the definitions of
all of them, behind the networks that it names itself, and its first container asks for their resources, unless some
container does. Where the agents are device plugins, it also asks for the node's interfaces that its networks stand on.

Of a pod that asks for nothing no byte changes. What comes out is left as it is when it comes in again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, assert_never

from msgspec import Struct, structs

from admission.errors import FieldError, invalid, shown
from admission.multusconfig import INJECT, problems
from admission.names import is_label_value
from admission.review import Judgement
from api import networkresources
from api.annotations import MULTUS_NETWORKS, AnnotationError
from api.attachments import attachment_name, injected_resource
from api.configfile import ConfigFile, MasterNicRule
from api.multusconfig import MultusConfigSpec, SpiderMultusConfig
from api.networks import Network, default_network, joined, networks
from api.newpod import MIRROR, NewContainer, NewPod, Quantity, Resources

_OF_DEVICES: Final = frozenset({"sriov", "ib-sriov"})
"""Types whose NICs are devices that the kubelet gives out: as many are needed as there are NICs."""

_LONGEST_PROBLEM: Final = 300
"""Characters of what is wrong with an annotation, in which parts of it are repeated."""

type Injected = tuple[NewPod, Judgement]
"""The pod as it is to be, and what is wrong; then it is as it came."""


class Policy(Struct, frozen=True):
    """What holds for all pods.

    Attributes:
        namespace: of the release: its pods are never looked at, and it is that of a default network without one.
        exclude: namespaces whose pods are left alone.
        include: when there are any, only these are not.
        master_nics: rules by which agents offer the node's interfaces; none where they do not.
        sub_eni: resource of a NIC that a cloud makes; empty where there is no such thing.
        allows: whether pods of one namespace may be attached to the networks of another.
    """

    namespace: str = ""
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    master_nics: tuple[MasterNicRule, ...] = ()
    sub_eni: str = ""
    allows: Callable[[str, str], bool] = lambda _pod, _network: True

    @property
    def counts(self) -> bool:
        """Whether networks that pods name themselves matter."""
        return bool(self.master_nics or self.sub_eni)


class Wish(Struct, frozen=True):
    """An annotation that asks for networks."""

    key: str
    value: str
    namespace: str = ""
    """Whose it is; empty where it is the pod's own."""

    @property
    def is_word(self) -> bool:
        """Whether a label can have this value: what else it is, no selector may be made of it."""
        return is_label_value(self.value)

    def refused(self, problem: str) -> FieldError:
        """Said of the field that asks."""
        if self.namespace:
            said = f"its annotation {self.key} is {shown(self.value)}: {problem}"
            return invalid("metadata.namespace", self.namespace, said)
        return invalid(_note(self.key), self.value, problem)


def policy(config: ConfigFile, *, namespace: str, allows: Callable[[str, str], bool]) -> Policy:
    """By the file of settings. The resources of device plugins count only where those are on and have rules."""
    plugin = config.agent.network_resource_plugin
    offered = plugin.resource_advertisement
    cloud = bool(plugin.enabled and offered.sub_eni.rules and config.iaas_network_provider.server_url)
    return Policy(
        namespace=namespace,
        exclude=config.pod_resource_inject.namespaces_exclude,
        include=config.pod_resource_inject.namespaces_include,
        master_nics=offered.master_nic.rules if plugin.enabled else (),
        sub_eni=offered.sub_eni.rules[0].resource_name if cloud else "",
        allows=allows,
    )


def concerned(pod: NewPod, namespace: str, chosen: Policy) -> bool:
    """Whether a pod is looked at: not where its namespace is left out, nor when a kubelet runs it already."""
    if namespace == chosen.namespace or namespace in chosen.exclude or MIRROR in pod.metadata.annotations:
        return False
    return not chosen.include or namespace in chosen.include


def wish(pod: NewPod, namespace: str, notes: Mapping[str, str]) -> Wish | None:
    """What is asked for: by the pod, and only where it does not say anything by its namespace, whose `notes` these are.

    An empty value asks for nothing, so that a pod can do without what its namespace asks for.
    """
    for whose, annotations in (("", pod.metadata.annotations), (namespace, notes)):
        said = [Wish(key, annotations[key], whose) for key in INJECT if key in annotations]
        if said:
            return next((one for one in said if one.value), None)
    return None


def attached(
    pod: NewPod, asks: Wish, configs: Iterable[SpiderMultusConfig], *, namespace: str, chosen: Policy
) -> Injected:
    """The pod with the networks that it asks for, and what they need.

    Args:
        pod: as it came.
        asks: what is asked for.
        configs: all that have the label.
        namespace: the pod's.
        chosen: what holds for all pods.
    """
    warnings = tuple(_warnings(pod, asks))
    if pod.spec.host_network:
        return pod, Judgement(warnings=warnings)
    there = [config for config in configs if config.metadata.deletion_timestamp is None]
    mine = sorted((one for one in there if chosen.allows(namespace, one.metadata.namespace)), key=_rank)
    errors = list(_errors(asks, there, mine))
    by_path = {(config.metadata.namespace, attachment_name(config)): config for config in reversed(mine)}
    notes = pod.metadata.annotations
    value, nics = "", tuple[Network, ...]()
    try:
        value = joined(notes, reversed(by_path), namespace=namespace)
        nics = networks({MULTUS_NETWORKS: value}, namespace=namespace)
    except AnnotationError as error:
        errors.append(invalid(_note(error.key), error.value, error.problem[:_LONGEST_PROBLEM]))
    if errors:
        return pod, Judgement(tuple(errors), warnings)
    meta = structs.replace(pod.metadata, annotations=notes | {MULTUS_NETWORKS: value})
    after = structs.replace(pod, metadata=meta)
    found = [by_path.get((nic.namespace, nic.name)) for nic in nics]
    return _asking(after, _injected(config for config in found if config is not None)), Judgement(warnings=warnings)


def named(pod: NewPod, *, namespace: str, chosen: Policy) -> Sequence[Network]:
    """The networks of a pod, also that of its first NIC where it names one. None where that cannot be read.

    The pod's node says what is wrong with them, as it does without any webhook.
    """
    if pod.spec.host_network:
        return ()
    notes = pod.metadata.annotations
    try:
        first = default_network(notes, namespace=chosen.namespace)
        others = networks(notes, namespace=namespace)
    except AnnotationError:
        return ()
    return others if first is None else (first, *others)


def counted(pod: NewPod, nics: Iterable[SpiderMultusConfig], chosen: Policy) -> NewPod:
    """The pod, asking for what agents offer as device plugins: `nics` has the maker of each of its networks."""
    wanted: dict[str, int] = {}
    for config in nics:
        for master in _masters(config.spec):
            resource = networkresources.master_nic(master)
            if _is_offered(master, chosen.master_nics) and not networkresources.problem(resource):
                wanted[resource] = 1
        vlan = config.spec.vlan if config.spec.cni_type == "vlan" else None
        if chosen.sub_eni and vlan is not None and vlan.vlan_mode == "auto":
            wanted[chosen.sub_eni] = wanted.get(chosen.sub_eni, 0) + 1
    return _asking(pod, wanted)


def _warnings(pod: NewPod, asks: Wish) -> Iterator[str]:
    if asks.namespace:
        return
    notes = pod.metadata.annotations
    if pod.spec.host_network:
        yield f"{_note(asks.key)}: without effect with spec.hostNetwork, the pod has the node's interfaces"
    for key in INJECT:
        if key != asks.key and notes.get(key):
            yield f"{_note(key)}: without effect beside {asks.key}"


def _errors(
    asks: Wish, there: Sequence[SpiderMultusConfig], mine: Sequence[SpiderMultusConfig]
) -> Iterator[FieldError]:
    """Why networks cannot be had: nobody makes them, or what makes them makes no sense."""
    if not asks.is_word:
        yield asks.refused(
            "it can be no label: 1 to 63 letters, digits, '-', '_' or '.', a letter or digit at both ends"
        )
    elif not mine:
        elsewhere = sorted({config.metadata.namespace for config in there})
        text = f"only in namespaces whose networks it may not use: {', '.join(elsewhere)}" if there else "none has it"
        yield asks.refused(f"no SpiderMultusConfig with the label {asks.key}: {text}")
    for config in mine:
        meta = config.metadata
        # As the label says, whether it was copied from the annotation or written by hand.
        asked = structs.replace(config, metadata=structs.replace(meta, annotations=meta.annotations | _said(asks)))
        for problem in problems(asked):
            yield asks.refused(f"SpiderMultusConfig {meta.namespace}/{meta.name}: {problem}")


def _said(asks: Wish) -> dict[str, str]:
    return {asks.key: asks.value}


def _rank(config: SpiderMultusConfig) -> tuple[str, str, str]:
    """By what the NICs stand on, then by name: the first of the networks is net1, whoever looks."""
    return _stands_on(config.spec), config.metadata.namespace, config.metadata.name


def _stands_on(spec: MultusConfigSpec) -> str:
    match spec.cni_type:
        case "macvlan" | "ipvlan" | "vlan":
            block = {"macvlan": spec.macvlan, "ipvlan": spec.ipvlan, "vlan": spec.vlan}[spec.cni_type]
            if block is not None and block.bond is not None:
                return block.bond.name
            return block.master[0] if block is not None and block.master else ""
        case "ipoib":
            return spec.ipoib.master if spec.ipoib is not None else ""
        case "sriov" | "ib-sriov":
            return injected_resource(spec)
        case "ovs" | "custom" | None:
            return ""
        case _:
            assert_never(spec.cni_type)


def _masters(spec: MultusConfigSpec) -> Sequence[str]:
    """The node's interfaces that a NIC needs; a bond is made of them."""
    match spec.cni_type:
        case "macvlan" | "ipvlan" | "vlan":
            block = {"macvlan": spec.macvlan, "ipvlan": spec.ipvlan, "vlan": spec.vlan}[spec.cni_type]
            return block.master if block is not None else ()
        case "ipoib" if spec.ipoib is not None:
            return (spec.ipoib.master,)
        case _:
            return ()


def _is_offered(master: str, rules: Iterable[MasterNicRule]) -> bool:
    """Whether agents may offer it: a pod that asks for something else never finds a node.

    Whether it is physical is the nodes' knowledge: it is taken for one that is.
    """
    return any(rule.takes(master, physical=True) for rule in rules)


def _injected(configs: Iterable[SpiderMultusConfig]) -> Mapping[str, int]:
    """How many of which resource these NICs need; those that share a device need it once."""
    wanted: dict[str, int] = {}
    for config in configs:
        if resource := injected_resource(config.spec):
            several = config.spec.cni_type in _OF_DEVICES
            wanted[resource] = wanted.get(resource, 0) + 1 if several else max(wanted.get(resource, 0), 1)
    return wanted


def _asking(pod: NewPod, wanted: Mapping[str, int]) -> NewPod:
    """The pod, whose first container asks for what no container asks for yet."""
    spec = pod.spec
    asked = {
        name
        for container in (*spec.containers, *spec.init_containers)
        for names in (container.resources.limits, container.resources.requests)
        for name in names
    }
    more: dict[str, Quantity] = {name: str(number) for name, number in wanted.items() if name not in asked}
    if not more or not spec.containers:
        return pod
    first, *others = spec.containers
    resources = Resources(limits=first.resources.limits | more, requests=first.resources.requests | more)
    return structs.replace(pod, spec=structs.replace(spec, containers=[NewContainer(resources=resources), *others]))


def _note(key: str) -> str:
    return f"metadata.annotations[{key}]"
