"""How an uninstall asks an agent to leave its node, and how it answers: an annotation and an event, on its pod."""

RETIRE = "spiderpool.spidernet.io/retire"
"""The annotation on an agent's pod that asks it to withdraw; its value is ``true``."""

WITHDRAWN, LEFT = "CNIWithdrawn", "CNILeft"
"""Reasons of the event by which an agent answers: nothing of it is left on the node, or something is."""
