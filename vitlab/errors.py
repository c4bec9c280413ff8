"""The user's mistakes, told apart from bugs: a mistake ends in one message, a bug keeps its traceback."""

from __future__ import annotations

import errno
import os

from vitlab.files import FULL

# Errors with which the system refuses a path, whichever call meets it first, even is_file(). ENOENT is not among them: where the user's
# file may be missing, the code that opens it says so, and any other missing file is a bug.
REFUSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO,
    errno.ESTALE, *FULL,
}  # fmt: skip


class UserError(Exception):
    """A user's mistake, or a file of theirs that is missing or damaged: the command prints the message and exits with code 2.

    The message names the file (and line), what was expected and what to do. It is no ValueError, since torch and NumPy raise those for our
    own mistakes. A validator of a pydantic model does raise ValueError: pydantic turns it into a ValidationError, and the caller that
    validates the model turns that into a UserError.
    """


class Lost(Exception):
    """Another process of the run has ended before it did. The message says what to do."""


def refused(e: OSError) -> UserError:
    """Return the UserError for a path of the user's that the system refuses."""
    return UserError(f"{os.fsdecode(e.filename)}: {e.strerror}; check the path, its permissions and the disk's space")


def message(e: Exception) -> str | None:
    """Return the message for the user's mistake; None for anything else, which is a bug.

    An OSError is the user's where it names a path that the system refuses (REFUSED).
    """
    if isinstance(e, OSError) and isinstance(e.filename, str | bytes) and e.errno in REFUSED:
        e = refused(e)
    return str(e) if isinstance(e, UserError) else None
