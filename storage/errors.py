"""The one error a user is meant to read."""


class UserError(Exception):
    """One sentence that names the field or file, the value, and the remedy. The command line prints it alone."""
