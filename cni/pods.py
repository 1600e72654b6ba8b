"""Whose sandbox a call is about: the pod that the runtime names, or else the container itself.

kubelet's runtimes and podman say it in CNI_ARGS. nerdctl and cnitool name no pod: where there is no Kubernetes to ask,
the container's id is as good a name.
"""

import re

from msgspec import structs

from cni.errors import InvalidEnvironment
from cni.protocol import Invocation, Verb

DEFAULT_NAMESPACE = "default"
"""Of a container whose runtime names none: the same in all networks, for a container may be in several."""
_MOST = 253
"""Characters of an object's name."""


def named_by_runtime(invocation: Invocation) -> Invocation:
    """The call as it is; an ADD has to name its pod.

    Raises:
        InvalidEnvironment: CNI_ARGS lacks K8S_POD_NAMESPACE or K8S_POD_NAME.
    """
    if invocation.verb is Verb.ADD:
        values = {"K8S_POD_NAMESPACE": invocation.args.namespace, "K8S_POD_NAME": invocation.args.name}
        missing = [key for key, value in values.items() if not value]
        if missing:
            raise InvalidEnvironment(f"{', '.join(missing)}: missing from CNI_ARGS")
    return invocation


def named_somehow(invocation: Invocation) -> Invocation:
    """The call with a pod, for a host without Kubernetes.

    What the runtime names stays. A container without a name is called by its id. A uid is made where there is none: the
    container's id for a nameless one; for one with a name that name, so that who comes back under it is the same.
    Names become what objects may be called: lower case, and a dash for every other character.
    """
    args = invocation.args
    if not (invocation.container_id or args.name):
        return invocation  # GC and STATUS are about no container
    namespace = args.namespace or DEFAULT_NAMESPACE
    name = args.name or invocation.container_id
    uid = args.uid or (f"{namespace}/{name}" if args.name else invocation.container_id)
    named = structs.replace(args, namespace=_object_name(namespace), name=_object_name(name), uid=uid)
    return structs.replace(invocation, args=named)


def _object_name(text: str) -> str:
    return re.sub(r"[^a-z0-9.-]", "-", text.lower())[:_MOST].strip("-.") or DEFAULT_NAMESPACE
