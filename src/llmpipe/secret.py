"""Reads secrets. A setting only says where one is (rule I1), so that no setting that is shown, compared or logged holds it."""

import os
import re
from pathlib import Path

from llmpipe.config import Secret
from llmpipe.errors import UsageError

MOST_BYTES = 4096
"""Bytes of a secret."""

# What can stand behind "Bearer", in any client and any file.
_TEXT = re.compile(rb"[!-~]+")


def read(secret: Secret, name: str) -> bytes:
    """The secret, without white space at its ends.

    Args:
        secret: where it is.
        name: of the setting, for errors; none of them repeats the secret.

    Raises:
        UsageError: it is not there, is empty, or is no secret that a client could send.
    """
    if secret.file:
        where = secret.file
        try:
            with Path(secret.file).open("rb") as file:
                text = file.read(MOST_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{name}: {where}: {reason}") from None
    else:
        where = f"the variable {secret.env}"
        value = os.environb.get(os.fsencode(secret.env))
        if value is None:
            raise UsageError(f"{name}: {where} is not set")
        text = value
    return check(text, f"{name}: {where}")


def check(text: bytes, where: str) -> bytes:
    """A secret without white space at its ends.

    Args:
        text: that was read.
        where: for errors, which do not repeat it.

    Raises:
        UsageError: it is empty, or is no secret that a client could send.
    """
    if len(text) > MOST_BYTES:
        raise UsageError(f"{where} has more than {MOST_BYTES} bytes; write the secret alone")
    text = text.strip()
    if not text:
        raise UsageError(f"{where} is empty; write the secret into it")
    if not _TEXT.fullmatch(text):
        raise UsageError(f"{where} has white space or something else than ASCII in it; write the secret alone")
    return text
