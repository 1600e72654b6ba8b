"""Rtnetlink for containers: messages encoded by hand, sent on a worker thread, errors in the words of the kernel.

Everything here blocks. `cni.kernel.LinuxKernel` is what the actors call.
"""
