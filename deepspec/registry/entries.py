"""The entries of the promotion log, as they are written and read: drafts by name and by identity, and who asked.

Format 2 came with roll backs that block what was rolled back: an older deepspec, which would promote it again, refuses
a log from such an entry on.
"""

from datetime import datetime
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepspec.account import Actor
from deepspec.gates.verdict import Verdict
from deepspec.registry.errors import PromotionLogDamaged
from deepspec.store.records import refuse_newer, seal, unseal

FORMAT = 2
"""Raised when an entry is written that an older deepspec could not read rightly."""

Kind: TypeAlias = Literal["promote", "rollback", "unblock"]


class DraftReference(BaseModel):
    """A draft: where it lies in the store, its content, and its registered version.

    Attributes:
        kind, key: the artifact's name in the store.
        digest: SHA-256 over the artifact's file list: the draft's identity here.
        version: registered model version, None if it is not registered.
        uri: where the registry hands it out (`models:/name/version`).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str
    key: str = Field(min_length=1)
    digest: str = Field(min_length=1)
    version: str | None = None
    uri: str | None = None


class DraftIdentity(BaseModel):
    """What makes two drafts the same for a roll back, whatever changed around them.

    Attributes:
        digest: of the artifact's files.
        weights: digest of the weights alone; None: not known.
        recipe: digest of all that it was made from, stage versions left out: it is the same after an upgrade; None: not
            known.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str
    weights: str | None = None
    recipe: str | None = None

    def likeness(self, other: "DraftIdentity") -> str | None:
        """What both have in common, in words; None: nothing."""
        if self.digest == other.digest:
            return "the same draft"
        if self.weights is not None and self.weights == other.weights:
            return "the same weights"
        if self.recipe is not None and self.recipe == other.recipe:
            return "made by the same recipe of the same inputs"
        return None


class Promotion(BaseModel):
    """One entry of the log.

    Its place decides what came before what; `when` is only shown, for clocks differ.

    Attributes:
        format: version of this record.
        model: registered model name.
        number: its place in the log, from 1.
        kind: "promote" (a challenger won), "rollback" (an earlier champion again) or "unblock" (the champion stays, and
            a draft that was rolled back may be promoted again).
        champion: who serves from here on.
        previous: who served before; None in the first entry.
        verdict: what the gates said; None for a roll back.
        about: a roll back's: what it blocks, that is the champion it was rolled back from; an unblocking's: what it
            unblocks. None: a promotion, or a roll back of format 1.
        who: the person or machine account that asked, in words.
        actor: who that was, and what knows them; None: an earlier deepspec left it out, and `who` is only a claim.
        when: ISO 8601, UTC.
        reason: why, in the asker's words; may be empty.
        attempt: unique to the call that wrote it, so that a writer whose answer was lost knows its own entry.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = 1
    model: str
    number: int = Field(ge=1)
    kind: Kind
    champion: DraftReference
    previous: DraftReference | None
    verdict: Verdict | None
    about: DraftIdentity | None = None
    who: str
    actor: Actor | None = None
    when: datetime
    reason: str = ""
    attempt: str

    @property
    def asked_by(self) -> str:
        """Who asked, as it is shown: a name that nothing has authenticated is a claim."""
        return str(self.actor or Actor(claimed=self.who))

    def to_bytes(self) -> bytes:
        """The entry as JSON with its own checksum."""
        return seal(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Promotion":
        """Read an entry back.

        Raises:
            PromotionLogDamaged: it is not an intact entry.
            ArtifactError: a newer deepspec wrote it.
        """
        try:
            record = unseal(data)
            refuse_newer(record, FORMAT, what="This promotion", where=where, otherwise="use another store")
            return cls.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            flaw = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
            raise damaged(where, flaw) from error
        except ValueError as error:
            raise damaged(where, str(error)) from error


def damaged(where: str, flaw: str) -> PromotionLogDamaged:
    """The error about an entry of the log."""
    return PromotionLogDamaged(
        f"The promotion log is damaged: {flaw}.",
        where=where,
        remedy="Restore this entry from a backup; nothing is promoted or rolled back until then.",
    )
