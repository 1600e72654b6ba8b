"""The demonstration: a LAN out of network namespaces, a node on it, two pods, and nothing left afterwards."""
