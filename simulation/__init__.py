"""A cluster in one process, for users: what an installation of this size would write, and how long its pods would wait.

`plan` is what is asked for, `apiserver`, `network` and `node` model what is around a controller, `world` lets the real
controllers live in it on a virtual clock, `audit` looks for what must not be, `report` says how it went.
"""
