"""How a verb says that it did not do what it was asked for. `ctl.main` prints the text on one line and exits."""


class Failure(Exception):
    """The request was sound and could not be carried out: exit code 1."""

    exit_code = 1


class Misuse(Failure):
    """Flags, files or objects are wrong, and nothing was done: exit code 2. The text names the field and its value."""

    exit_code = 2
