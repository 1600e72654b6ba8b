"""Tests on a kernel that this machine need not have: in a QEMU guest with the newest kernel of Debian and SR-IOV NICs.

What a file in ``inside`` tests runs there; `tests.vm.remote` brings the results back as if they had run here.
``python -m tests.vm`` does it with any tests, runs a command, or opens a shell.
"""
