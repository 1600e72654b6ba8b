"""Pods by a real kubelet, ours against the reference macvlan and host-local chain on the same nodes in the same run.

    make bench BENCH=cluster
    python -m bench cluster --pods 100 --rounds 2

One cluster of the lab serves both: between two rounds, when no pod is left, a configuration that comes before ours in
the nodes' folder is put there or taken away. While the reference works our programs stay; what they use meanwhile is
counted by their cgroups and taken off the reference's figures. So load of the machine's other work falls on both, and
ratios mean more than seconds.
"""
