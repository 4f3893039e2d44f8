"""What a check has found.

Belongs here: the form of a finding. Does not belong here: any check.
"""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is: fine, perhaps in the way, or surely in the way."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line. subject: the key of the profile that it is about; remedy: what to do, where something is to be done.

    `text` may quote what strangers say: it is shown as it is, never read as markup.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str, remedy: str = "") -> Finding:
    """It may work, slowly or with luck, or it could not be found out."""
    return Finding(Level.WARNING, subject, text, remedy)


def fault(subject: str, text: str, remedy: str) -> Finding:
    """It will not work."""
    return Finding(Level.FAULT, subject, text, remedy)
