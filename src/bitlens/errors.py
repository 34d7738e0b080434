"""Exceptions that are meant for a person: the command line prints them as a sentence."""


class BitlensError(Exception):
    """Bad input or a condition that the user can mend; exit status 2.

    The message is one sentence that names the thing and the way out.
    """


class Interrupted(BitlensError):
    """The work was stopped on request, after everything done so far was saved."""
