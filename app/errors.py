"""Exceptions that end a command of the app with one sentence, and their exit codes."""


class WrongUse(Exception):
    """The request cannot work. The sentence names the option and a value that would work; exit code 2."""


class Failed(Exception):
    """The work cannot continue. Every process of the group raises this, with one sentence; exit code 1."""


EXIT_FAILED = 1
EXIT_WRONG_USE = 2
