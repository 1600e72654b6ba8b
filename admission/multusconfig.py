"""What may be written of a SpiderMultusConfig: NICs that nodes can make, under a name that is nobody else's.

What the nodes' plugins would refuse for every pod is refused here once (`cni` has the rules), with the field of the
SpiderMultusConfig that is wrong. Of an object whose spec and notes stay as they are nothing is asked.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec
from msgspec import Struct, structs

from admission.blocks import block_errors, block_warnings, completed_block
from admission.coordination import completed, coordination_errors
from admission.errors import FieldError, duplicate, forbidden, invalid, required, unsupported
from admission.names import is_label_value, is_network_name, subdomain_problem
from admission.review import Judgement, Review
from api.annotations import (
    CNI_CONFIG_NAME,
    MULTUS_CNI_VERSION,
    MULTUS_CR_NAME,
    NETWORK_RESOURCE_INJECT,
    RDMA_RESOURCE_INJECT,
)
from api.attachments import CNI_VERSIONS, attachment_name, injected_resource, pools_of
from api.coordinator import CoordinatorSpec
from api.kinds import MULTUSCONFIG
from api.meta import ObjectMeta
from api.multusconfig import BLOCKS, MultusConfigSpec, SpiderMultusConfig
from api.networkattachment import NetworkAttachmentDefinition
from api.wire import Coordination
from cni.config import decode_config
from cni.conflist import read_conflist
from cni.coordination.settings import settle
from cni.errors import CniError

INJECT: Final = (RDMA_RESOURCE_INJECT, NETWORK_RESOURCE_INJECT)
"""Annotations that are copied to labels, by which a pod's are looked up."""
_NOTES: Final = (MULTUS_CR_NAME, MULTUS_CNI_VERSION, CNI_CONFIG_NAME, *INJECT)
_NOT_INJECTED: Final = frozenset({"ovs", "custom"})
_PLUGINS: Final = frozenset({"macvlan", "ipvlan", "vlan", "sriov", "spiderpool", "coordinator", "ifacer"})
"""Plugin types that the agent does itself, so that what it thinks of a configuration is known here."""


class Others(Struct, frozen=True):
    """What else there is, which may lag: of two that take one name at the same time the owner sees the second."""

    configs: Callable[[], Iterable[SpiderMultusConfig]] = tuple
    attachment: Callable[[str, str], NetworkAttachmentDefinition | None] = lambda _namespace, _name: None
    """By namespace and name."""


class MultusConfigRules:
    """`admission.review.Rules` of SpiderMultusConfigs."""

    def __init__(self, others: Others = Others()) -> None:  # noqa: B008 - frozen
        """Without `others` nothing is said of names that are taken."""
        self._others = others

    def complete(self, review: Review[SpiderMultusConfig]) -> SpiderMultusConfig:
        """Type, the block's and the coordinator's defaults, and the labels that pods are matched by."""
        config = review.new
        if review.operation == "DELETE" or config.metadata.deletion_timestamp is not None:
            return config
        before = review.old.metadata if review.old is not None else ObjectMeta()
        return structs.replace(config, metadata=_labelled(config.metadata, before), spec=completed_spec(config.spec))

    def judge(self, review: Review[SpiderMultusConfig]) -> Judgement:
        """Whether it may be written."""
        new, old = review.new, review.old
        if review.operation == "DELETE" or (old is not None and _said(old) == _said(new)):
            return Judgement()
        if old is not None and old.metadata.deletion_timestamp is not None:
            return Judgement((forbidden("spec", "the object is being deleted"),))
        errors = [*problems(new), *_rename_errors(new, old)]
        if old is None or attachment_name(old) != attachment_name(new):
            errors += self._taken_errors(new)
        return Judgement(tuple(errors), tuple(_warnings(new.spec)))

    def _taken_errors(self, config: SpiderMultusConfig) -> Iterator[FieldError]:
        meta, name = config.metadata, attachment_name(config)
        field = _note(MULTUS_CR_NAME) if MULTUS_CR_NAME in meta.annotations else "metadata.name"
        rivals = sorted(
            other.metadata.name
            for other in self._others.configs()
            if other.metadata.namespace == meta.namespace
            and other.metadata.name != meta.name
            and attachment_name(other) == name
        )
        if rivals:
            yield duplicate(field, name, f"SpiderMultusConfig {rivals[0]} makes the definition of this name")
            return
        found = self._others.attachment(meta.namespace, name)
        owner = found.metadata.controller if found is not None else None
        if owner is not None and (owner.kind, owner.name) != (MULTUSCONFIG.kind, meta.name):
            yield duplicate(field, name, f"the definition of this name is {owner.kind} {owner.name}'s")


def completed_spec(spec: MultusConfigSpec) -> MultusConfigSpec:
    """With what an author may leave out."""
    kind = spec.cni_type or "custom"
    if kind == "custom":
        return structs.replace(
            spec, cni_type=kind, custom_cni=spec.custom_cni or "", enable_coordinator=False, coordinator=None
        )
    field = BLOCKS[kind]
    block = getattr(spec, field)
    coordinated = spec.enable_coordinator is not False
    coordinator = spec.coordinator or (CoordinatorSpec() if coordinated else None)
    return structs.replace(
        spec,
        cni_type=kind,
        enable_coordinator=coordinated,
        disable_ipam=bool(spec.disable_ipam),
        coordinator=completed(coordinator) if coordinator is not None else None,
        **({field: completed_block(block)} if block is not None else {}),
    )


def problems(config: SpiderMultusConfig) -> list[FieldError]:
    """All that is wrong with an object for itself."""
    spec = config.spec
    kind = spec.cni_type or "custom"
    errors = [*_block_choice_errors(spec, kind)]
    block = getattr(spec, BLOCKS[kind]) if kind in BLOCKS else None
    if block is not None:
        errors += block_errors(f"spec.{BLOCKS[kind]}", block)
    if kind == "custom":
        errors += _custom_errors(config)
    else:
        errors += _chain_errors(spec.chain_cni_json_data)
        if spec.coordinator is not None:
            errors += coordination_errors("spec.coordinator", spec.coordinator)
            if kind == "ipvlan" and spec.coordinator.pod_mac_prefix:
                text = "an ipvlan NIC has the MAC address of its master"
                errors.append(forbidden("spec.coordinator.podMACPrefix", text))
    return [*errors, *_note_errors(config.metadata), *_inject_errors(config, kind)]


def _said(config: SpiderMultusConfig) -> tuple[MultusConfigSpec, tuple[str | None, ...]]:
    """All that the rules are about, whoever filled in the defaults."""
    return completed_spec(config.spec), tuple(config.metadata.annotations.get(key) for key in _NOTES)


def _labelled(meta: ObjectMeta, before: ObjectMeta) -> ObjectMeta:
    """With the annotations of pods' injection as labels; a label whose annotation goes now goes with it."""
    labels = dict(meta.labels)
    for key in INJECT:
        if key in meta.annotations:
            labels[key] = meta.annotations[key]
        elif key in before.annotations:
            labels.pop(key, None)
    return structs.replace(meta, labels=labels) if labels != meta.labels else meta


def _block_choice_errors(spec: MultusConfigSpec, kind: str) -> Iterator[FieldError]:
    for type_, field in BLOCKS.items():
        block = getattr(spec, field)
        if type_ == kind and block is None:
            yield required(f"spec.{field}", f"cniType is {kind}")
        elif type_ != kind and block is not None:
            yield forbidden(f"spec.{field}", f"cniType is {kind}")
    if kind != "custom" and spec.custom_cni:
        yield forbidden("spec.customCNI", f"cniType is {kind}")


def _custom_errors(config: SpiderMultusConfig) -> Iterator[FieldError]:
    field, text = "spec.customCNI", config.spec.custom_cni
    if not text:
        return
    try:
        read_conflist(text, where=field, name=config.metadata.name)
    except CniError as error:
        yield invalid(field, text, _reason(error, field))


def _chain_errors(entries: list[str]) -> Iterator[FieldError]:
    for at, text in enumerate(entries):
        field = f"spec.chainCNIJsonData[{at}]"
        try:
            plugin = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            yield invalid(field, text, f"it is not JSON: {error}")
            continue
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind:
            yield invalid(field, text, 'expected the configuration of one plugin, as {"type": "tuning"}')
        elif kind in _PLUGINS:
            try:
                config = decode_config({**plugin, "name": "chained"})
                if config.coordinator is not None:
                    settle(config.coordinator, Coordination(), prefix="")
            except CniError as error:
                yield invalid(field, text, _reason(error, field))


def _note_errors(meta: ObjectMeta) -> Iterator[FieldError]:
    notes = meta.annotations
    if MULTUS_CR_NAME in notes and (problem := subdomain_problem(notes[MULTUS_CR_NAME])):
        yield invalid(_note(MULTUS_CR_NAME), notes[MULTUS_CR_NAME], problem)
    if MULTUS_CNI_VERSION in notes and notes[MULTUS_CNI_VERSION] not in CNI_VERSIONS:
        yield unsupported(_note(MULTUS_CNI_VERSION), notes[MULTUS_CNI_VERSION], CNI_VERSIONS)
    if CNI_CONFIG_NAME in notes and not is_network_name(notes[CNI_CONFIG_NAME]):
        text = "expected the name of a CNI network: letters, digits, '_', '.' and '-', a letter or digit first"
        yield invalid(_note(CNI_CONFIG_NAME), notes[CNI_CONFIG_NAME], text)
    for key in INJECT:
        if key in notes and not is_label_value(notes[key]):
            text = "it becomes a label: 1 to 63 letters, digits, '-', '_' or '.', a letter or digit at both ends"
            yield invalid(_note(key), notes[key], text)


def _inject_errors(config: SpiderMultusConfig, kind: str) -> Iterator[FieldError]:
    """A pod that is given the network asks for its resource, and gets its address from the pools that are named."""
    for key in INJECT:
        if key not in config.metadata.annotations:
            continue
        if kind in _NOT_INJECTED:
            yield forbidden(_note(key), f"not with cniType {kind}")
            continue
        resource, pools = injected_resource(config.spec), pools_of(config.spec)
        if key == RDMA_RESOURCE_INJECT and not resource:
            yield required(_resource_field(kind), f"the annotation {key} is there")
        if (key == RDMA_RESOURCE_INJECT or resource) and not (pools is not None and (pools.ipv4 or pools.ipv6)):
            yield required(f"spec.{BLOCKS[kind]}.ippools", f"at least one pool, the annotation {key} is there")


def _resource_field(kind: str) -> str:
    match kind:
        case "sriov" | "ib-sriov":
            return f"spec.{BLOCKS[kind]}.resourceName"
        case _:
            return f"spec.{BLOCKS[kind]}.rdmaResourceName"


def _rename_errors(new: SpiderMultusConfig, old: SpiderMultusConfig | None) -> Iterator[FieldError]:
    """Pods name the definition, so it keeps its name. Without the annotation it gets the object's own."""
    if old is None:
        return
    before, now = (config.metadata.annotations.get(MULTUS_CR_NAME) for config in (old, new))
    if now is not None and now != before:
        yield invalid(_note(MULTUS_CR_NAME), now, f"it is {before or 'absent'}, and can be removed but not changed")


def _warnings(spec: MultusConfigSpec) -> Iterator[str]:
    kind = spec.cni_type or "custom"
    if kind == "custom" and spec.chain_cni_json_data:
        yield "spec.chainCNIJsonData: without effect with cniType custom, write the plugins into customCNI"
    if kind in BLOCKS and (block := getattr(spec, BLOCKS[kind])) is not None:
        yield from block_warnings(f"spec.{BLOCKS[kind]}", block)


def _note(key: str) -> str:
    return f"metadata.annotations[{key}]"


def _reason(error: CniError, field: str) -> str:
    """What a plugin would say, without the field's name and value, which are said anyway."""
    said = error.msg.removeprefix(f"{field}: ")
    return f"{said}: {error.details}" if error.details else said
