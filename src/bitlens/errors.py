"""Exceptions that are meant for a person: the command line prints them as a sentence."""


class BitlensError(Exception):
    """Bad input or a condition that the user can mend; exit status 2.

    The message is one sentence that names the thing and the way out. It is one line, which moves no
    cursor: what it quotes of a file may be anything.
    """

    def __init__(self, *said: object) -> None:
        super().__init__(*("".join(c if c.isprintable() else " " for c in str(s)) for s in said))


class Interrupted(BitlensError):
    """The work was stopped on request, after everything done so far was saved."""
