"""The errors that a user can mend.

Everything that is the user's to repair (a key, a file, a folder) is raised as a `UserError` whose text is
one line: what is wrong, with its value, and what to do. The command line prints that line and exits with 1;
anything else is a bug of ours and keeps its traceback.
"""


class UserError(Exception):
    """Something that the user can repair; `str(error)` is the one line that is shown.

    Attributes:
        status: that the command exits with.
    """

    status = 1


class LostProcess(UserError):
    """Another process of the run has died, whose own error says why; told apart from it by the exit status."""

    status = 3


class ConfigError(UserError):
    """A configuration key with a value that cannot work.

    Args:
        key: the dotted key as typed on the command line, e.g. "model.num_heads".
        value: the offending value.
        advice: what is wrong with it and what would be right.
    """

    def __init__(self, key: str, value: object, advice: str):
        super().__init__(f"{key}={value}: {advice}")
        self.key = key
