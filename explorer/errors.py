"""`Absent`: what a request names is not in the store."""

from patchsae.storage.errors import UserError


class Absent(UserError):
    """A sentence that says what is not there, and what to run for it. Servers answer it with 404."""
