"""`UserError`, which every module raises for a fault that the user can mend."""


class UserError(Exception):
    """A sentence that names the field or file, its value and the remedy; printed without a traceback."""
