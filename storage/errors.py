"""`UserError`, which every module raises for a fault that the user can mend, `Damaged`, and `StoreWarning`."""


class UserError(Exception):
    """A sentence that names the field or file, its value and the remedy; printed without a traceback."""


class Damaged(UserError):
    """A file of a store that is gone, or is not what was written, with the remedy."""


class StoreWarning(UserWarning):
    """A sentence about something in a store that cannot be used, while the rest of the store can."""
