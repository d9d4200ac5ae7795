"""What the app says when it is used wrongly."""


class WrongUse(Exception):
    """The request cannot work. One sentence that names the thing and a value that would work; exit code 2."""


EXIT_WRONG_USE = 2
