"""The node's parents: looked at, and made as planned (`cni.parents`), each as one blocking call on one thread."""

import errno
import logging
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import assert_never

from msgspec import Struct

from cni.errors import CniError, InterfaceExists, KernelRefused
from cni.netlink import belongings, bond, holders, kinds, link, message, route
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.socket import Refusal, Request, RouteSocket, route_socket
from cni.parents import (
    Activate,
    DefaultRoute,
    Enslave,
    MakeBond,
    MakeVlan,
    ParentPlan,
    ParentView,
    SetUp,
    Step,
    TakeBond,
    alias,
    steps,
)
from cni.plan import LinkState
from telemetry import traces
from telemetry.attributes import LINK_PARENT, NETLINK_STEP

_log = logging.getLogger(__name__)

_IFLA_IFNAME, _IFLA_LINK, _IFLA_LINKINFO = 3, 5, 18
_INFO_KIND, _INFO_DATA = 1, 2
_UP = 1
_ATTEMPTS = 4
"""Looks at the node: others may change it at the same time."""
_HEADER = struct.Struct("=BxHiII")


def look(sockets: RouteSocket, plan: ParentPlan, *, to_change: bool = False) -> ParentView:
    """What of the node matters for a plan; `sockets` is in its namespace.

    With `to_change` every namespace of the node is asked what stands on the slaves-to-be.

    Raises:
        KernelRefused: the kernel does not say.
    """
    names = dict.fromkeys((*plan.interfaces, plan.base, plan.name))
    links = {name: found for name in names if (found := link.get(sockets, name)) is not None}
    slaves: dict[int, str] = {}
    state = None
    wanted: set[int] = set()
    defaults: tuple[DefaultRoute, ...] = ()
    carried: dict[int, str] = {}
    if plan.bond is not None:
        found = links.get(plan.bond.name)
        index = found.index if found is not None else 0
        if found is not None and found.kind == "bond":
            # The plan may call a link by another of its names.
            called = {links[name].index: name for name in plan.interfaces if name in links}
            slaves = {one.index: called.get(one.index, one.ifname) for one in bond.slaves(sockets, index)}
            state = bond.state(sockets, index, names=slaves)
        there = [links[name] for name in plan.interfaces if name in links]
        free = [one for one in there if not index or one.master_index != index]
        wanted |= {one.master_index for one in free if one.master_index}
        if free:
            defaults = _defaults(sockets)
        if free and to_change:
            carried = _carried([one for one in free if not one.master_index])
    vlans = [one for one in link.listed(sockets, kind="vlan") if one.vlan_id == plan.vlan_id] if plan.vlan_id else []
    tagged = [one for one in (*vlans, *links.values()) if one.kind == "vlan" and one.parent_netns is None]
    wanted |= {one.parent_index for one in tagged}
    others = {index: found for index in wanted if (found := link.get_index(sockets, index)) is not None}
    return ParentView(
        links=links,
        bond=state,
        slaves=tuple(sorted(slaves.values())),
        vlans=tuple(vlans),
        others=others,
        defaults=defaults,
        carried=carried,
    )


def _carried(slaves: Sequence[LinkState]) -> dict[int, str]:
    words = {one.index: holders.described(one, where=holders.OWN) for one in slaves}
    return {index: seen for index, seen in words.items() if seen}


def _defaults(sockets: RouteSocket) -> tuple[DefaultRoute, ...]:
    return tuple(
        DefaultRoute(index=index, version=one.version, metric=one.metric, advertised=one.protocol == route.BY_ROUTER)
        for index, one in route.everything(sockets, table=route.MAIN)
        if one.is_default
    )


def parent_differences(plan: ParentPlan, who: str) -> list[str]:
    """See `cni.kernel.Kernel.parent_differences`."""
    with route_socket() as sockets, traces.span("netlink look at parent", attributes=_attributes(plan)):
        return [str(step) for step in steps(plan, look(sockets, plan), who=who)]


def ensure_parent(plan: ParentPlan, who: str) -> None:
    """See `cni.kernel.Kernel.ensure_parent`."""
    with (
        route_socket() as sockets,
        ExitStack() as undo,
        traces.span("netlink make parent", attributes=_attributes(plan)),
    ):
        work = _Work(sockets, plan, who, undo)
        todo: Sequence[Step] = ()
        for _ in range(_ATTEMPTS):
            todo = steps(plan, look(sockets, plan, to_change=True), who=who)
            if not todo:
                undo.pop_all()
                return
            work.do(todo)
        left = ", ".join(map(str, todo))
        raise KernelRefused(f"ifacer: {plan.name} is not what was asked for, whatever is done: {left}")


class _Raced(Exception):
    """Somebody else has just made it: to be looked at again."""


class _Work(Struct, frozen=True):
    """Carries steps out, and notes how to take each back."""

    sockets: RouteSocket
    plan: ParentPlan
    who: str
    undo: ExitStack

    def do(self, todo: Sequence[Step]) -> None:
        """Carry out steps, up to one that somebody else has just done.

        What the links have that are set down for it is read before the first step, and put back behind the last one
        that is taken back: routes need the links that they go through.

        Raises:
            InterfaceExists: a pod has the VLAN id.
            KernelRefused: it does not want to.
        """
        self._keep([name for step in todo if (name := _set_down_by(step))])
        with suppress(_Raced):
            for step in todo:
                _log.info("ifacer: %s; for %s", step, self.who)
                self._one(step)

    def _keep(self, names: Sequence[str]) -> None:
        if not names:
            return
        had = belongings.read(self.sockets, [found for name in names if (found := link.get(self.sockets, name))])
        for request in reversed(belongings.requests(had)):
            self._on_failure(partial(self.sockets.pipeline, [request]))

    def _one(self, step: Step) -> None:
        match step:
            case MakeBond(plan):
                made = self._make(plan.name, bond.create_body(plan), doing=f"make bond {plan}")
                self.sockets.pipeline(bond.settings(made.index, plan, slaves=self._indices()))
            case TakeBond(plan):
                found = self._need(plan.name)
                self._set(found, up=False)
                self.sockets.pipeline(bond.settings(found.index, plan, slaves=self._indices()))
                self._sign(found)
            case Enslave(slave, master):
                self._enslave(self._need(slave), self._need(master))
            case Activate(slave, master):
                doing = f"make {slave} the active slave of {master}"
                index = self._need(slave).index
                try:
                    self.sockets.pipeline([bond.activate(self._need(master).index, slave=index, doing=doing)])
                except KernelRefused as error:
                    # It may have no link now, which is what the others are for.
                    _log.warning("%s; the bond chooses one itself", error)
            case SetUp(ifname):
                self._set(self._need(ifname), up=True)
            case MakeVlan(ifname, base, vlan_id):
                self._make_vlan(ifname, self._need(base), vlan_id)
            case _:
                assert_never(step)

    def _make(self, ifname: str, body: bytes, *, doing: str) -> LinkState:
        try:
            self.sockets.request(link.RTM_NEWLINK, message.F_CREATE | message.F_EXCL, body)
        except Refusal as refusal:
            if refusal.number == errno.EEXIST and link.get(self.sockets, ifname) is not None:
                raise _Raced from None
            raise refusal.explain(doing) from None
        made = self._need(ifname)
        self._on_failure(lambda: link.delete(self.sockets, made))
        self._sign(made)
        return made

    def _make_vlan(self, ifname: str, base: LinkState, vlan_id: int) -> None:
        info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "vlan"), nested(_INFO_DATA, *kinds.vlan(vlan_id)))
        body = _HEADER.pack(0, 0, 0, _UP, _UP) + text(_IFLA_IFNAME, ifname) + attribute(_IFLA_LINK, u32(base.index))
        try:
            self._make(ifname, body + info, doing=f"make VLAN {vlan_id} on {base.ifname} as {ifname}")
        except KernelRefused as error:
            if error.errno != errno.EEXIST:
                raise
            has = holders.described(base, where=holders.OWN, vlan_id=vlan_id)
            msg = f"ifacer: VLAN {vlan_id} is taken on {base.ifname}; {self.who} wants it as {ifname}"
            raise InterfaceExists(msg, "; ".join(filter(None, (error.details, has)))) from None

    def _enslave(self, slave: LinkState, master: LinkState) -> None:
        if slave.master_index == master.index:
            return
        doing = f"make {slave.ifname} a slave of {master.ifname}"
        if slave.up:
            self._on_failure(lambda: self._request(link.set_up_body(slave.index), doing=f"set {slave.ifname} up"))
        requests = bond.enslave(slave.index, bond=master.index, doing=doing)
        self._on_failure(lambda: self._free(slave, master))
        try:
            self.sockets.pipeline(requests)
        except KernelRefused as error:
            has = holders.described(slave, where=holders.OWN)
            error.details = "; ".join(filter(None, (error.details, has)))
            raise

    def _free(self, slave: LinkState, master: LinkState) -> None:
        now = link.get_index(self.sockets, slave.index)
        if now is not None and now.master_index == master.index:
            self.sockets.pipeline(bond.enslave(slave.index, bond=0, doing=f"free {slave.ifname}"))

    def _set(self, found: LinkState, *, up: bool) -> None:
        if found.up is up:
            return
        states = {True: link.set_up_body(found.index), False: _HEADER.pack(0, 0, found.index, 0, _UP)}
        word = "up" if up else "down"
        self._request(states[up], doing=f"set {found.ifname} {word}")
        self._on_failure(lambda: self._request(states[not up], doing=f"set {found.ifname} back from {word}"))

    def _sign(self, found: LinkState) -> None:
        body = link.settings_body(found.index, alias=alias(self.who))
        self._request(body, doing=f"write on {found.ifname} who it was made for")

    def _request(self, body: bytes, *, doing: str) -> None:
        self.sockets.pipeline([Request(link.RTM_SETLINK, 0, body, doing)])

    def _need(self, ifname: str) -> LinkState:
        found = link.get(self.sockets, ifname)
        if found is None:
            raise KernelRefused(f"ifacer: there is no interface {ifname} on this node any more")
        return found

    def _indices(self) -> dict[str, int]:
        return {name: self._need(name).index for name in self.plan.interfaces}

    def _on_failure(self, take_back: Callable[[], object]) -> None:
        def attempt() -> None:
            try:
                take_back()
            except CniError as error:
                _log.warning("ifacer: could not be taken back: %s", error)

        self.undo.callback(attempt)


def _set_down_by(step: Step) -> str:
    """The link that a step sets down, if it does."""
    match step:
        case TakeBond(plan):
            return plan.name
        case Enslave(slave, _):
            return slave
        case _:
            return ""


def _attributes(plan: ParentPlan) -> dict[str, str]:
    return {NETLINK_STEP: "parent", LINK_PARENT: plan.name}
