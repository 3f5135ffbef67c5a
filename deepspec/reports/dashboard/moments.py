"""Moments as people read them: in UTC, with the machine's form next to it."""

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Moment:
    """A time in both forms.

    Attributes:
        iso: ISO 8601.
        day: as in 2 Dec 2026.
        text: with hours and minutes.
    """

    iso: str
    day: str
    text: str


def moment(iso: str) -> Moment:
    """A time of the feed; one that cannot be read stays as it is."""
    try:
        at = datetime.fromisoformat(iso).astimezone(UTC)
    except ValueError:
        return Moment(iso, iso, iso)
    day = f"{at.day} {at:%b %Y}"
    return Moment(at.isoformat(timespec="seconds"), day, f"{day}, {at:%H:%M}")
