"""Where promoted drafts go on to: a store and an MLflow of production's own, by the environment.

A variable DEEPSPEC_PRODUCTION_X stands there for X here: STORE for DEEPSPEC_STORE, MLFLOW_TRACKING_URI, and what both
need. Variables that belong together (user and password, say) are production's as soon as one of them is; where none is,
this side's hold there, too. An empty one stands for none.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deepspec.errors import RecipeError
from deepspec.home import code_version
from deepspec.registry.open import tracking_of
from deepspec.store import Store, open_store
from deepspec.store.backends.s3_location import SCHEME, endpoint_url

PREFIX = "DEEPSPEC_PRODUCTION_"
STORE = f"{PREFIX}STORE"
TRACKING = f"{PREFIX}MLFLOW_TRACKING_URI"

_TOGETHER = (
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ("AWS_REGION", "AWS_DEFAULT_REGION"),
    ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)
_KNOWN = {"STORE", "AWS_MAX_ATTEMPTS", *(name for names in _TOGETHER for name in names)}
_MLFLOW = re.compile(r"MLFLOW_[A-Z0-9_]+")
_PATIENCE = {
    # A night's run must not wait long for it: the next one catches up.
    "AWS_MAX_ATTEMPTS": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
_NAMES = re.compile(r"\b(?:DEEPSPEC_(?=STORE\b)|(?=(?:AWS|MLFLOW)_[A-Z]))")


@dataclass(frozen=True)
class Production:
    """Production's store and MLflow.

    Attributes:
        location: of the store.
        environment: of a process that works there, with its credentials.
    """

    location: str
    environment: Mapping[str, str] = field(repr=False)

    @property
    def has_mlflow(self) -> bool:
        """Whether it has an MLflow: consumers need none."""
        return "MLFLOW_TRACKING_URI" in self.environment

    def store(self, home: Path) -> Store:
        """Its store, opened with its credentials.

        Raises:
            RecipeError: its address, or that of its endpoint, is malformed.
        """
        try:
            return open_store(self.location, code_version(), home / "cache", self.environment)
        except RecipeError as error:
            error.where, error.remedy = named_as_productions(error.where), named_as_productions(error.remedy)
            raise


def production_of(store: Store, home: Path, environment: Mapping[str, str] = os.environ) -> Production | None:
    """Where promoted drafts go on to; None: nowhere.

    Args:
        store, home: this side's.
        environment: with the variables of both sides.

    Raises:
        RecipeError: a variable of production's is unknown, or lacks another; or production is this side itself.
    """
    theirs = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)}
    for name in sorted(theirs):
        if name not in _KNOWN and not _MLFLOW.fullmatch(name):
            raise RecipeError(
                "There is no such variable of production's.",
                where=f"{PREFIX}{name}",
                remedy=f"Known: {', '.join(sorted(PREFIX + known for known in _KNOWN))}, {PREFIX}MLFLOW_….",
            )
    location = theirs.pop("STORE", "")
    if not location:
        if any(theirs.values()):
            raise RecipeError(
                "Variables of production's are set, but its store is not.",
                where=STORE,
                remedy=f"Set {STORE}, or unset {', '.join(sorted(PREFIX + name for name in theirs))}.",
            )
        return None
    if bool(theirs.get("AWS_ACCESS_KEY_ID")) != bool(theirs.get("AWS_SECRET_ACCESS_KEY")):
        raise RecipeError(
            "An access key has two parts, and only one is set.",
            where=f"{PREFIX}AWS_ACCESS_KEY_ID",
            remedy=f"Set {PREFIX}AWS_ACCESS_KEY_ID and {PREFIX}AWS_SECRET_ACCESS_KEY.",
        )
    if not location.startswith(SCHEME) and "://" not in location:
        location = str(Path(location).expanduser().absolute())
    found = Production(location, {**_environment(theirs, environment), "DEEPSPEC_STORE": location})
    _refuse_this_side(found, store, home, environment)
    return found


def _environment(theirs: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process that works in production."""
    replaced = {"MLFLOW_TRACKING_URI", *_PATIENCE, *theirs}
    for names in _TOGETHER:
        if any(name in theirs for name in names):
            replaced.update(names)
    kept = {name: value for name, value in ours.items() if name not in replaced and not name.startswith(PREFIX)}
    return {**kept, **_PATIENCE, **{name: value for name, value in theirs.items() if value}}


def _refuse_this_side(found: Production, store: Store, home: Path, environment: Mapping[str, str]) -> None:
    """Refuse production's store or MLflow where it is the one that drafts are made in."""
    same = store.backend.location == found.location
    if same and (not store.shared or endpoint_url(environment) == endpoint_url(found.environment)):
        raise RecipeError(
            "Production's store is the one that drafts are made in.", where=STORE, remedy="Name another place."
        )
    if found.has_mlflow and found.environment["MLFLOW_TRACKING_URI"] == tracking_of(home).uri:
        raise RecipeError(
            "Production's MLflow is the one that runs are tracked in.", where=TRACKING, remedy="Name another one."
        )


def named_as_productions(text: str | None) -> str | None:
    """A message with the names that variables of production's have on this side."""
    return text and _NAMES.sub(PREFIX, text)
