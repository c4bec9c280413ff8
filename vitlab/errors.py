"""What is the user's to mend, told apart from a bug: the one ends in a message, the other keeps its traceback."""

from __future__ import annotations

import errno
import os

from vitlab.files import FULL

# What the system refuses on a path, whichever call meets it first: even is_file() may. Not ENOENT: a missing file of the user's is looked
# for where it is opened, and any other is a bug.
REFUSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO,
    errno.ESTALE, *FULL,
}  # fmt: skip


class UserError(Exception):
    """A mistake of the user's, or a file of theirs that is missing or damaged: the command prints the message and exits with code 2.

    The message names the file (and line), what was expected and what to do. It is no ValueError, since torch and NumPy raise those for
    our own mistakes. A validator of a pydantic model raises ValueError all the same: pydantic turns it into a ValidationError, which is
    made a UserError where the model is validated.
    """


def refused(e: OSError) -> UserError:
    """What the system said of a path of the user's."""
    return UserError(f"{os.fsdecode(e.filename)}: {e.strerror}; check the path, its permissions and the disk's space")


def message(e: Exception) -> str | None:
    """What to tell the user of a mistake of theirs; None for anything else, which is a bug.

    An OSError is theirs where it names a path that the system refuses (REFUSED).
    """
    if isinstance(e, OSError) and isinstance(e.filename, str | bytes) and e.errno in REFUSED:
        e = refused(e)
    return str(e) if isinstance(e, UserError) else None
