"""A real cluster on one machine: control plane, nodes, LAN, router and a client beyond it, all in namespaces.

`tests.cluster.lab` makes it, ``make cluster-up`` and ``python -m tests.cluster`` are its command line, and the tests
here prove the lab and the product in it.
"""
