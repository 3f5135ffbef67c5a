"""Who runs this, and what knows them.

A name in an environment variable is a claim: whoever can start a process can set it. What counts is who the tracking
server or the object store has let in, or, in a folder on this machine, whom the operating system runs the process as.
"""

import os
import pwd

from pydantic import BaseModel, ConfigDict

CLAIM_VARIABLE = "DEEPSPEC_USER"


class Actor(BaseModel):
    """A person or machine account.

    Attributes:
        name: as `known_by` knows it; None: nothing has authenticated it.
        known_by: what authenticated it, in words: "MLflow user", "access key", "local user" …
        claimed: the name in DEEPSPEC_USER, if that is another.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str | None = None
    known_by: str | None = None
    claimed: str | None = None

    def __str__(self) -> str:
        known = f"{self.name} ({self.known_by})" if self.name is not None else None
        claim = f"claimed: {self.claimed}" if self.claimed is not None else None
        return ", ".join(filter(None, (known, claim))) or "unknown"

    def with_claim(self) -> "Actor":
        """The same with the name that the environment claims, if it is another."""
        claimed = os.environ.get(CLAIM_VARIABLE) or None
        return self.model_copy(update={"claimed": claimed if claimed != self.name else None})


def local_user() -> Actor:
    """The account that the operating system runs this process as: by its number, not by a variable."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = f"uid {number}"
    return Actor(name=name, known_by="local user")
