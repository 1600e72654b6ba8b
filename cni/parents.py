"""The parents that the plugin `ifacer` sees to on the node: a VLAN, a bond, or a VLAN on a bond.

They are shared by many pods, and by whoever else uses the node; so they are never removed, and what is there is looked
at first. Pure: `parent_plan` decides from the configuration what is wanted, `steps` from what the node has what is to
be done, or why not; `cni.netlink.parent` looks and acts.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from cni.bond import BondPlan, BondState, bond_options, differences
from cni.config import NetConfig, shown
from cni.errors import InterfaceExists, InvalidConfig
from cni.plan import VLAN_PROTOCOLS, LinkState
from cni.protocol import Invocation, ifname_problem

DEFAULT_BOND = "sp_bond0"
VLAN_ID_PER_PARENT = "SPIDERPOOL_VLAN_ID_PER_PARENT"
"""The setting that switches `ParentPlan.vlan_id_once` off."""
_ALIAS = "spiderpool: "
_ALIAS_MAX = 254
_ALL_BONDS = "/bonds"
"""No link can have this name."""

type Shared = str | int
"""What one change at a time may concern: a link by its name, a VLAN by its id, or all bonds."""


class ParentPlan(Struct, frozen=True, kw_only=True):
    """A parent to have on the node."""

    interfaces: tuple[str, ...]
    """Of the node; more than one only for a bond."""
    bond: BondPlan | None = None
    vlan_id: int = 0
    """0: no VLAN."""
    vlan_id_once: bool = True
    """Whether no other parent of the node may have a VLAN of the same id."""

    @property
    def base(self) -> str:
        """What the VLAN stands on."""
        return self.bond.name if self.bond is not None else self.interfaces[0]

    @property
    def name(self) -> str:
        """What links of pods stand on."""
        return f"{self.base}.{self.vlan_id}" if self.vlan_id else self.base

    @property
    def shared(self) -> frozenset[Shared]:
        """What making it concerns: two plans that have nothing of it in common can be made side by side.

        Bonds go one after the other: whether one may take a link depends on the default routes that others leave.
        """
        found: set[Shared] = {*self.interfaces, self.base, self.name}
        if self.bond is not None:
            found.add(_ALL_BONDS)
        if self.vlan_id and self.vlan_id_once:
            found.add(self.vlan_id)
        return frozenset(found)


class DefaultRoute(Struct, frozen=True, kw_only=True):
    """A way of the node to everywhere."""

    index: int
    """The link it goes through."""
    version: int
    """Of IP."""
    metric: int = 0
    advertised: bool = False
    """Whether a router has told of it, so that nobody has chosen this link for it."""


class ParentView(Struct, frozen=True, kw_only=True):
    """What of the node matters for a plan."""

    links: Mapping[str, LinkState]
    """Those of the plan's names that exist."""
    bond: BondState | None = None
    """The plan's bond, when it is one."""
    slaves: tuple[str, ...] = ()
    """That bond's."""
    vlans: tuple[LinkState, ...] = ()
    """All VLANs of the node with the plan's id."""
    others: Mapping[int, LinkState] = {}
    """By index: what those VLANs stand on, and what the interfaces are ports of."""
    defaults: tuple[DefaultRoute, ...] = ()
    """All of the node, when an interface is to become a slave."""
    carried: Mapping[int, str] = {}
    """By the index of such an interface: what stands on it, in words, in pods as well. Known only before a change."""


class MakeBond(Struct, frozen=True):
    """Make the bond, without slaves."""

    plan: BondPlan

    def __str__(self) -> str:
        return f"bond {self.plan.name} is missing"


class TakeBond(Struct, frozen=True):
    """Give an empty bond that nobody uses its mode and options."""

    plan: BondPlan

    def __str__(self) -> str:
        return f"bond {self.plan.name} is there and is nobody's"


class Enslave(Struct, frozen=True):
    """Make a link a slave of the bond."""

    slave: str
    bond: str

    def __str__(self) -> str:
        return f"{self.slave} is no slave of {self.bond}"


class Activate(Struct, frozen=True):
    """Have the bond begin with a slave."""

    slave: str
    bond: str

    def __str__(self) -> str:
        return f"{self.slave} is not the active slave of {self.bond}"


class SetUp(Struct, frozen=True):
    """Set a link up."""

    ifname: str

    def __str__(self) -> str:
        return f"{self.ifname} is down"


class MakeVlan(Struct, frozen=True):
    """Make the VLAN, up."""

    ifname: str
    base: str
    vlan_id: int

    def __str__(self) -> str:
        return f"VLAN {self.ifname} is missing"


type Step = MakeBond | TakeBond | Enslave | Activate | SetUp | MakeVlan


def parent_plan(conf: NetConfig, *, vlan_id_once: bool = True) -> ParentPlan | None:
    """What a configuration of `ifacer` asks for; None when that is nothing.

    Raises:
        InvalidConfig: a value cannot be; the message names it.
    """
    interfaces, vlan_id, bond = conf.interfaces, conf.vlan_tag or 0, None
    if not interfaces:
        raise InvalidConfig("interfaces: missing from the network configuration", "ifacer needs at least one")
    for at, name in enumerate(interfaces):
        _check_name(f"interfaces[{at}]", name)
        if name in interfaces[:at]:
            raise InvalidConfig(f"interfaces[{at}]: {shown(name)} is there twice")
    if len(interfaces) > 1 and conf.bond is not None:
        name = conf.bond.name or DEFAULT_BOND
        _check_name("bond.name", name)
        if name in interfaces:
            raise InvalidConfig(f"bond.name: {shown(name)} is one of the interfaces")
        options = bond_options(conf.bond.options, slaves=interfaces)
        bond = BondPlan(name=name, mode=conf.bond.mode, options=options)
    if bond is None and not vlan_id:
        return None
    if bond is None and len(interfaces) > 1:
        msg = f"vlanID: {vlan_id} needs one interface, or a bond of them"
        raise InvalidConfig(msg, f"interfaces: {', '.join(interfaces)}; there is no bond")
    plan = ParentPlan(interfaces=interfaces, bond=bond, vlan_id=vlan_id, vlan_id_once=vlan_id_once)
    problem = ifname_problem(plan.name)
    if problem:
        raise InvalidConfig(f"vlanID: {vlan_id} on {plan.base} would be {shown(plan.name)}, no interface name", problem)
    return plan


def asker(invocation: Invocation) -> str:
    """Who wants a parent, for errors and for the alias of what is made."""
    pod = "/".join(filter(None, (invocation.args.namespace, invocation.args.name)))
    return f"network {invocation.conf.name}" + (f", pod {pod}" if pod else "")


def alias(who: str) -> str:
    """What a link carries that was made for somebody."""
    return f"{_ALIAS}{who}".encode()[:_ALIAS_MAX].decode(errors="ignore")


def steps(plan: ParentPlan, view: ParentView, *, who: str) -> list[Step]:
    """What is to be done, in order; empty when all is as planned.

    Every step may have been done meanwhile, and is fine then.

    Raises:
        InvalidConfig: an interface is missing, or must not become a slave.
        InterfaceExists: the node has something else where the parent is to be. Both sides are named.
    """
    for at, name in enumerate(plan.interfaces):
        if name not in view.links:
            raise InvalidConfig(f"interfaces[{at}]: there is no interface {shown(name)} on this node")
    todo = [] if plan.bond is None else _bond_steps(plan, plan.bond, view, who)
    if plan.vlan_id:
        todo += _vlan_steps(plan, view, who)
    return todo


def _bond_steps(plan: ParentPlan, bond: BondPlan, view: ParentView, who: str) -> list[Step]:
    found = view.links.get(bond.name)
    if found is not None and found.kind != "bond":
        raise _conflict(f"{_described(found)} is no bond", f"wants {bond}", who)
    free = [name for name in plan.interfaces if found is None or view.links[name].master_index != found.index]
    _check_free(free, plan, view, who)
    todo: list[Step] = [Enslave(name, bond.name) for name in free]
    todo += [SetUp(name) for name in plan.interfaces if name not in free and not view.links[name].up]
    first = dict(bond.options).get("active_slave")
    if free and isinstance(first, str):
        todo.append(Activate(first, bond.name))
    if found is None or view.bond is None:
        return [MakeBond(bond), *todo, SetUp(bond.name)]
    strange = [name for name in view.slaves if name not in plan.interfaces]
    if strange:
        has = f"bond {_described(found)} has the slaves {', '.join(view.slaves)}"
        raise _conflict(has, f"wants it of {', '.join(plan.interfaces)}", who)
    changed = differences(bond, view.bond, whole=not free)
    nobodys = not view.slaves and (not found.alias or found.alias.startswith(_ALIAS))
    if changed and not nobodys:
        raise _conflict(f"bond {_described(found)} is another: {', '.join(changed)}", f"wants {bond}", who)
    if changed or (nobodys and not found.alias):
        return [TakeBond(bond), *todo, SetUp(bond.name)]
    return todo if found.up else [*todo, SetUp(bond.name)]


def _check_free(free: Sequence[str], plan: ParentPlan, view: ParentView, who: str) -> None:
    """See to it that links may become slaves: each is set down first, with what stands on it and leads through it."""
    needed = _needed(view.defaults, frozenset(view.links[name].index for name in free))
    for name in free:
        found, field = view.links[name], f"interfaces[{plan.interfaces.index(name)}]"
        wants = f"wants {name} in bond {plan.base} ({field})"
        if found.master_index:
            master = view.others.get(found.master_index)
            has = f"{master.kind} {_described(master)}" if master is not None else f"link #{found.master_index}"
            raise _conflict(f"{name} is a port of {has}", wants, who)
        if found.index in needed:
            has = f"has the node's IPv{needed[found.index]} default route"
            msg = f"{field}: {shown(name)} {has}, which it would lose as a slave of {plan.base}"
            raise InvalidConfig(msg, f"{who} wants it")
        if found.index in view.carried:
            raise _conflict(
                view.carried[found.index], wants, who, hint="a slave is set down, and they would be with it"
            )


def _needed(defaults: Iterable[DefaultRoute], leaving: frozenset[int]) -> dict[int, int]:
    """The links, of those that become slaves, that a default route of the node depends on; the IP version by index.

    That is the best one of its version. One that a router has told of depends on no link while another link has one
    that is as good: many a NIC that is there for pods only has heard the router as well.
    """
    needed: dict[int, int] = {}
    for version in (6, 4):
        ways = [one for one in defaults if one.version == version]
        best = [one for one in ways if one.metric == min(way.metric for way in ways)]
        another = any(one.index not in leaving for one in best)
        lost = [one for one in best if one.index in leaving and not (one.advertised and another)]
        needed |= {one.index: version for one in lost}
    return needed


def _vlan_steps(plan: ParentPlan, view: ParentView, who: str) -> list[Step]:
    found, base = view.links.get(plan.name), view.links.get(plan.base)
    wanted = f"wants VLAN {plan.vlan_id} on {plan.base} as {plan.name}"
    if found is not None and not _is_planned(found, plan, base):
        raise _conflict(f"{_described(found)} is {_what(found, view)}", wanted, who)
    for one in view.vlans:
        same = base is not None and _stands_on(one, base)
        if one.ifname != plan.name and (same or plan.vlan_id_once):
            hint = "" if same else f"{VLAN_ID_PER_PARENT}=true allows one on each parent"
            raise _conflict(f"{_described(one)} is {_what(one, view)}", wanted, who, hint=hint)
    todo: list[Step] = []
    if plan.bond is None and base is not None and not base.up:
        todo.append(SetUp(plan.base))
    if found is None:
        todo.append(MakeVlan(plan.name, plan.base, plan.vlan_id))
    elif not found.up:
        todo.append(SetUp(plan.name))
    return todo


def _is_planned(found: LinkState, plan: ParentPlan, base: LinkState | None) -> bool:
    seen = found.kind, found.vlan_id, found.vlan_protocol
    return seen == ("vlan", plan.vlan_id, VLAN_PROTOCOLS[0]) and base is not None and _stands_on(found, base)


def _stands_on(one: LinkState, base: LinkState) -> bool:
    return one.parent_netns is None and one.parent_index == base.index


def _what(found: LinkState, view: ParentView) -> str:
    if found.vlan_id is None:
        return f"a {found.kind or 'physical'} link"
    base = view.others.get(found.parent_index) if found.parent_netns is None else None
    on = base.ifname if base is not None else f"link #{found.parent_index}"
    protocol = "" if found.vlan_protocol == VLAN_PROTOCOLS[0] else f" ({found.vlan_protocol})"
    return f"VLAN {found.vlan_id}{protocol} on {on}"


def _described(found: LinkState) -> str:
    """A link, and whose it is."""
    if found.alias.startswith(_ALIAS):
        return f"{found.ifname} (made for {found.alias.removeprefix(_ALIAS)})"
    return f"{found.ifname} ({found.alias or 'not made here'})"


def _conflict(has: str, wants: str, who: str, *, hint: str = "") -> InterfaceExists:
    return InterfaceExists(f"ifacer: {has}; {who} {wants}", hint or "what is there is neither changed nor removed")


def _check_name(field: str, name: str) -> None:
    problem = ifname_problem(name) if name else "it is empty"
    if problem:
        raise InvalidConfig(f"{field}: {shown(name)} is not an interface name", problem)
