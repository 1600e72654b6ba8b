"""Names of span and log attributes.

The first block is OpenTelemetry's semantic conventions (registry: resource/k8s, container, network, http, rpc, error);
what they have no word for is ours, under ``spiderpool.``. A name that is used once is still a constant here: this list
is what a person who searches traces reads.
"""

from typing import Final

# ---------------------------------------------------------------- semantic conventions

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"

K8S_NAMESPACE_NAME: Final = "k8s.namespace.name"
K8S_NODE_NAME: Final = "k8s.node.name"
K8S_POD_NAME: Final = "k8s.pod.name"
K8S_POD_UID: Final = "k8s.pod.uid"
CONTAINER_ID: Final = "container.id"

NETWORK_INTERFACE_NAME: Final = "network.interface.name"
NETWORK_TYPE: Final = "network.type"
"""``ipv4`` or ``ipv6``."""
NETWORK_PEER_ADDRESS: Final = "network.peer.address"
NETWORK_PEER_PORT: Final = "network.peer.port"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
HTTP_REQUEST_BODY_SIZE: Final = "http.request.body.size"
URL_PATH: Final = "url.path"

RPC_SYSTEM: Final = "rpc.system"
RPC_METHOD: Final = "rpc.method"

ERROR_TYPE: Final = "error.type"
PROCESS_EXIT_CODE: Final = "process.exit.code"

# ---------------------------------------------------------------- ours

CNI_COMMAND: Final = "spiderpool.cni.command"
CNI_TYPE: Final = "spiderpool.cni.type"
CNI_VERSION: Final = "spiderpool.cni.version"
CNI_ERROR_CODE: Final = "spiderpool.cni.error.code"
NETNS: Final = "spiderpool.netns"

ACTOR: Final = "spiderpool.actor"
"""Kind of the actor, as in the metrics' label."""
ACTOR_NAME: Final = "spiderpool.actor.name"
MESSAGE: Final = "spiderpool.message"
"""Tag of the message."""
BATCH_SIZE: Final = "spiderpool.batch.size"

PEER: Final = "spiderpool.peer"
"""The controller replica that is asked."""
POOL: Final = "spiderpool.pool.name"
POOL_CANDIDATES: Final = "spiderpool.pool.candidates"
POOLS_REJECTED: Final = "spiderpool.pool.rejected"
"""One string per pool that was considered and refused: name, predicate, what was seen."""
SELECTION_SOURCE: Final = "spiderpool.selection.source"
"""Where the candidate pools came from, in words."""
EXPLANATION: Final = "spiderpool.explanation"
"""One line per pool that was considered: accepted, or rejected by which predicate that saw what."""
ADDRESSES: Final = "spiderpool.addresses"
GATEWAYS: Final = "spiderpool.gateways"
"""That were looked for."""
CONFLICTS: Final = "spiderpool.conflicts"
"""Addresses that somebody else has, each with who."""
SILENT: Final = "spiderpool.gateways.silent"
"""That did not answer."""
CLAIMS: Final = "spiderpool.commit.claims"
RELEASES: Final = "spiderpool.commit.releases"
COMMIT_OUTCOME: Final = "spiderpool.commit.outcome"
COMMIT_BYTES: Final = "spiderpool.commit.bytes"
RESOURCE_VERSION: Final = "spiderpool.resource.version"

ADMISSION_OBJECT: Final = "spiderpool.admission.object"
"""``namespace/name`` of what is to be written."""
ADMISSION_OPERATION: Final = "spiderpool.admission.operation"
ADMISSION_OUTCOME: Final = "spiderpool.admission.outcome"

STORE_RESOURCE: Final = "spiderpool.store.resource"
STORE_VERB: Final = "spiderpool.store.verb"
STORE_OBJECT: Final = "spiderpool.store.object"

NETLINK_STEP: Final = "spiderpool.netlink.step"
NETLINK_REQUESTS: Final = "spiderpool.netlink.requests"
"""How many requests a step sent to the kernel."""
LINK_KIND: Final = "spiderpool.link.kind"
LINK_PARENT: Final = "spiderpool.link.parent"
