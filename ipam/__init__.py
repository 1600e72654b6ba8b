"""The rules: which address a pod gets and why.

Pure on purpose: nothing here does I/O, awaits, reads a clock or draws a random number. So an actor can replay a batch
of operations on a newer pool object and get the one right answer, and every rule can be checked against a naive model.
"""
