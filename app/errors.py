"""How a command of the app ends early, in one sentence and on all processes."""


class WrongUse(Exception):
    """The request cannot work. One sentence that names the thing and a value that would work; exit code 2."""


class Failed(Exception):
    """The work cannot go on, and every process of the group raises this. One sentence; exit code 1."""


EXIT_FAILED = 1
EXIT_WRONG_USE = 2
