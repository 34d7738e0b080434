"""The one exception that is meant for a person: the command line prints it as a sentence and exits with status 2."""


class BitlensError(Exception):
    """Bad input or a condition the user can mend. The message is one sentence that names the thing and the way out."""


class Interrupted(BitlensError):
    """The work was stopped on request, after everything done so far was saved."""
