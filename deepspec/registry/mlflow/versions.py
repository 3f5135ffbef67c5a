"""Registered models in MLflow: their versions, what is said of these, and the champion's alias.

The draft's directory itself is the registered model: it is logged file by file as an MLflow "logged model", so that
`mlflow.artifacts.download_artifacts("models:/name/version")` returns the directory that was registered, with the card
as README.md and the file MLmodel, which MLflow's page of a version asks for.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deepspec.account import Actor
from deepspec.gates.verdict import Verdict
from deepspec.gates.verdict_text import verdict_metrics
from deepspec.registry import keys
from deepspec.registry.card import CARD_FILE
from deepspec.registry.entries import DraftReference, Promotion
from deepspec.registry.errors import TrackingError, TrackingLost
from deepspec.registry.mlflow.connection import Connection, mlflow_errors
from deepspec.registry.mlflow.description import described, parts_of, verdict_part
from deepspec.registry.promotions import PromotionLog, previous_of
from deepspec.yaml import dumps

_OTHER_ALIASES = (keys.PREVIOUS, keys.CHALLENGER)
_LOGGED_MODEL = "models:/"
_MLMODEL = "MLmodel"
_ATTEMPTS = 5
_AGAIN_SECONDS = 0.05


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model.

    Attributes:
        name: model name.
        version: "1", "2", …
        uri: `models:/name/version`, for MLflow's own functions.
        tags: everything in `keys.KEYS` that was known at registration.
        aliases: e.g. ("champion",).
        run_id: the MLflow run that registered it.
        created: whether the call that returned this made it (False: it was there).
        description: what its page says: its verdict, if it was judged, and its card.
        source: address of the logged model that it is.
        created_milliseconds: when it was registered, since the epoch.
    """

    name: str
    version: str
    uri: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...] = ()
    run_id: str | None = None
    created: bool = False
    description: str = ""
    source: str = ""
    created_milliseconds: int = 0

    @property
    def logged_model(self) -> str | None:
        """The id of that logged model."""
        return self.source.removeprefix(_LOGGED_MODEL) if self.source.startswith(_LOGGED_MODEL) else None


@dataclass(frozen=True)
class Reconciled:
    """What `reconcile` found and did.

    Attributes:
        model: its name.
        aliases: alias -> the versions that it pointed to before and after; None: there is no such alias.
    """

    model: str
    aliases: Mapping[str, tuple[str | None, str | None]]

    @property
    def before(self) -> str | None:
        """The version that was champion in MLflow."""
        return self.aliases[keys.CHAMPION][0]

    @property
    def after(self) -> str | None:
        """The version that is champion."""
        return self.aliases[keys.CHAMPION][1]

    @property
    def changed(self) -> bool:
        """Whether the champion's alias had to be repaired."""
        return self.before != self.after

    @property
    def wrote(self) -> bool:
        """Whether any alias had to be repaired."""
        return any(was != now for was, now in self.aliases.values())

    def then(self, later: "Reconciled") -> "Reconciled":
        """This one and a later one as one: what was found first, and what is so at last."""
        return Reconciled(
            self.model, {alias: (was, later.aliases[alias][1]) for alias, (was, _) in self.aliases.items()}
        )

    def of_version(self, version: str) -> tuple[str, ...]:
        """The aliases that point to a version now."""
        return tuple(alias for alias, (_, now) in self.aliases.items() if now == version)


class Versions:
    """The registered models of one MLflow.

    Args:
        server: its connection.
    """

    def __init__(self, server: Connection) -> None:
        self._server = server
        self._charts: dict[str, str] = {}

    @property
    def uri(self) -> str:
        """The address it was made with."""
        return self._server.uri

    @property
    def shown_uri(self) -> str:
        """The address without credentials."""
        return self._server.shown_uri

    @property
    def experiment_id(self) -> str:
        """Its experiment's id; asked for at the first use."""
        return self._server.experiment_id

    def current_user(self) -> Actor | None:
        """Whom MLflow's server has let in; None: it asks for no name, or there is no server."""
        return self._server.current_user()

    def register(
        self,
        draft_dir: Path,
        model_name: str,
        run_id: str,
        tags: Mapping[str, str],
        *,
        draft: DraftReference,
        card: str | None = None,
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> RegisteredVersion:
        """Register a draft's directory as a new version of `model_name`.

        The same draft (key and digest) is registered once: a second call returns the existing version with new tags and
        a new card (of another evaluation, say).

        Args:
            draft_dir: the directory (`config.json`, `model.safetensors`, …); every file in it becomes the model.
            model_name: registered model; made when it is new.
            run_id: the pipeline run.
            tags: of the version (`keys.version_tags`).
            draft: the artifact that `draft_dir` is.
            card: about the draft (Markdown): README.md among the model's files, and the version's description.
            notes: further files about it, name -> text, among the model's; replaced like the card.

        Raises:
            TrackingError: MLflow refuses; nothing half-registered is visible as a version.
        """
        found = self.find_version(model_name, draft)
        if found is not None:
            self.retag(found, {name: value for name, value in tags.items() if name != keys.RUN_ID})
            self._replace_card(found, card, notes)
            return found
        client = self._server.client
        identity = {keys.DRAFT_KIND: draft.kind, keys.DRAFT_KEY: draft.key, keys.DRAFT_DIGEST: draft.digest}
        full = {**tags, **identity}
        with self._server.named_errors():
            model = client.create_logged_model(
                self._server.experiment_id,
                name=model_name.replace(".", "-"),  # MLflow allows dots in a registered model's name, but not here
                source_run_id=run_id,
                model_type="draft",
                tags=full,
            )
            with self._server.transferring():
                client.log_model_artifacts(model.model_id, str(draft_dir))
                described_by = {_MLMODEL: _mlmodel(model.model_id, run_id, tags)}
                self._log_texts(model.model_id, {**described_by, **_with_card(notes, card)})
            client.finalize_logged_model(model.model_id, "READY")
            try:
                client.create_registered_model(model_name)
            except mlflow_errors():
                if model_name not in self._model_names():
                    raise
            with self._server.as_global_uri():
                version = client.create_model_version(
                    model_name,
                    source=f"{_LOGGED_MODEL}{model.model_id}",
                    run_id=run_id,
                    tags=full,
                    description=None if card is None else described("", card),
                    model_id=model.model_id,
                )
        return _registered(version, created=True)

    def retag(self, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
        """Make a version's tags say what `tags` say; what they do not name stays."""
        if all(version.tags.get(name) == value for name, value in tags.items()):
            return
        client = self._server.client
        with self._server.named_errors():
            written = client.get_model_version(version.name, version.version).tags
        for name, value in tags.items():
            if written.get(name) != value:
                self._write(partial(client.set_model_version_tag, version.name, version.version, name, value))

    def say_verdict(self, version: RegisteredVersion, verdict: Verdict) -> None:
        """Make a version say what the gates said of it: in tags, first in its description, and in metrics.

        The metrics are the logged model's and its run's, with the version's number as the step: MLflow charts them over
        versions. The tags come last: a call that was interrupted is made again.
        """
        tags, text = keys.verdict_tags(verdict), verdict_part(verdict)
        if version.description.startswith(text) and all(
            version.tags.get(name) == value for name, value in tags.items()
        ):
            return
        client = self._server.client
        with self._server.named_errors():
            written = client.get_model_version(version.name, version.version)
            said = described(text, parts_of(written.description)[1])
            if written.description != said:
                client.update_model_version(version.name, version.version, said)
            measures = {
                keys.mlflow_name(keys.VERDICT_METRIC.format(measure=name)): value
                for name, value in verdict_metrics(verdict).items()
            }
            if version.run_id is not None:
                client.log_batch(version.run_id, metrics=metrics_of(version, measures))
            add_to_chart(client, self.chart_of(version.name), version=version, values=measures)
        self.retag(version, tags)

    def chart_of(self, model_name: str) -> str:
        """The run whose charts show all versions of a model, one line a measure; made when it is first needed."""
        if model_name not in self._charts:
            self._charts[model_name] = self._find_chart(model_name)
        return self._charts[model_name]

    def _find_chart(self, model_name: str) -> str:
        client, experiment = self._server.open()
        with self._server.named_errors():
            wanted = f"tags.`{keys.ALL_VERSIONS}` = {_quoted(model_name)}"
            found = client.search_runs([experiment], wanted, order_by=["attributes.start_time ASC"], max_results=1)
            if found:
                if found[0].info.status == "RUNNING":  # who made it was killed before the next line but one
                    client.set_terminated(found[0].info.run_id)
                return str(found[0].info.run_id)
            tags = {keys.ALL_VERSIONS: model_name, keys.NOTE: f"Every version of {model_name}: its number is the step."}
            made = client.create_run(experiment, run_name=f"{model_name} · all versions", tags=tags)
            client.set_terminated(made.info.run_id)  # nothing runs: it is there for its charts
            return str(made.info.run_id)

    def _replace_card(self, version: RegisteredVersion, card: str | None, notes: Mapping[str, str]) -> None:
        if card is None and not notes:
            return
        client = self._server.client
        with self._server.named_errors():
            written = client.get_model_version(version.name, version.version)
            # Asked for by itself a version does not name its logged model; its source, which `register` wrote, does.
            with self._server.transferring():
                model_id = str(written.source).removeprefix(_LOGGED_MODEL)
                # An earlier deepspec left the file out that MLflow's page asks for.
                described_by = {_MLMODEL: _mlmodel(model_id, str(written.run_id), written.tags)}
                self._log_texts(model_id, {**described_by, **_with_card(notes, card)})
            if card is not None:
                said = described(parts_of(written.description)[0], card)
                if written.description != said:
                    client.update_model_version(version.name, version.version, said)

    def _log_texts(self, model_id: str, texts: Mapping[str, str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in texts.items():
                file = Path(folder) / name
                file.write_text(text, encoding="utf-8", newline="\n")
                self._server.client.log_model_artifact(model_id, str(file))

    def find_version(self, model_name: str, draft: DraftReference) -> RegisteredVersion | None:
        """The version that is this draft (its key and digest), or None."""
        wanted = {keys.DRAFT_KEY: draft.key, keys.DRAFT_DIGEST: draft.digest}
        clauses = [f"name = {_quoted(model_name)}", *(f"tags.`{tag}` = '{value}'" for tag, value in wanted.items())]
        with self._server.named_errors():
            versions = self._server.client.search_model_versions(" and ".join(clauses))
        found = sorted((_registered(version) for version in versions), key=lambda v: int(v.version))
        return self._with_aliases(found[:1])[0] if found else None

    def list_versions(self, model_name: str) -> tuple[RegisteredVersion, ...]:
        """All versions of a model, newest first; empty if there is no such model."""
        with self._server.named_errors():
            found = [
                _registered(version)
                for version in _pages(self._server.client.search_model_versions, f"name = {_quoted(model_name)}")
            ]
        return tuple(self._with_aliases(sorted(found, key=lambda v: -int(v.version))))

    def list_models(self) -> tuple[str, ...]:
        """Names of all registered models, sorted."""
        with self._server.named_errors():
            return tuple(sorted(self._model_names()))

    def download(self, version: RegisteredVersion, out: Path) -> Path:
        """The registered directory's files, copied into `out` (made if missing)."""
        self._server.open()
        from mlflow.artifacts import download_artifacts

        out.mkdir(parents=True, exist_ok=True)
        with self._server.named_errors(), self._server.as_global_uri(), self._server.transferring():
            return Path(
                download_artifacts(version.uri, dst_path=str(out), tracking_uri=self.uri, registry_uri=self.uri)
            )

    def set_alias(self, model_name: str, alias: str, version: str) -> None:
        """Point `alias` of a model at a version."""
        self._write(partial(self._server.client.set_registered_model_alias, model_name, alias, version))

    def _write(self, write: Callable[[], object]) -> None:
        """Write what another run may write at the same moment: MLflow then refuses one of the two, and is asked again.

        It looks for a row and inserts it in two steps; the second time it finds the other's and changes it.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._server.named_errors():
                    write()
            except TrackingLost:
                raise
            except TrackingError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(_AGAIN_SECONDS * attempt)
            else:
                return

    def version_of(
        self, model_name: str, draft: DraftReference, among: Sequence[RegisteredVersion] | None = None
    ) -> RegisteredVersion:
        """The version that is this draft: what is said of a registered draft anywhere is looked up here first.

        By content, since versions may get new numbers after a loss; of several the one with the draft's number or key.

        Args:
            model_name: registered model name.
            draft: which.
            among: the model's versions; None: they are asked for.

        Raises:
            TrackingError: this MLflow has no such version, whatever the store says.
        """
        versions = self.list_versions(model_name) if among is None else among
        same = [v for v in versions if v.tags.get(keys.DRAFT_DIGEST) == draft.digest]
        if not same:
            number = f" (the store says version {draft.version})" if draft.version else ""
            raise TrackingError(
                f"The MLflow at {self._server.shown_uri} has no version of {model_name} with the draft "
                f"{draft.digest[:12]}{number}.",
                where=model_name,
                remedy=f"`deepspec models reconcile {model_name}` registers it there; or correct MLFLOW_TRACKING_URI.",
            )

        def likeness(version: RegisteredVersion) -> tuple[bool, bool, int]:
            has_key = version.tags.get(keys.DRAFT_KEY) == draft.key
            return version.version != draft.version, not has_key, int(version.version)

        return min(same, key=likeness)

    def reconcile(self, model_name: str, log: PromotionLog) -> Reconciled:
        """Make the aliases say what the promotion log says; nothing else decides who serves.

        Versions that were judged have a tag that says so; the newest of them that never was champion is the challenger.
        If the log has grown meanwhile, all is done again: its writer may have set the aliases first.

        Raises:
            TrackingError: the log's champion is not registered here; as `version_of`.
        """
        entries, first = log.history(model_name), None
        while True:
            found = self._follow(model_name, entries)
            first = first or found
            seen, entries = entries, log.history(model_name) if found.wrote else entries
            if len(entries) == len(seen):
                return first.then(found)

    def _follow(self, model_name: str, entries: Sequence[Promotion]) -> Reconciled:
        """Make the aliases say what these entries say."""
        versions = self.list_versions(model_name)
        if entries:
            self.version_of(model_name, entries[-1].champion, versions)
        before = {alias: version.version for version in versions for alias in version.aliases}
        after = self.aliases_by_log(model_name, versions, entries)
        found = Reconciled(
            model_name, {alias: (before.get(alias), after.get(alias)) for alias in (keys.CHAMPION, *_OTHER_ALIASES)}
        )
        client = self._server.client
        for alias, (was, now) in found.aliases.items():
            if now is None and was is not None:
                self._write(partial(client.delete_registered_model_alias, model_name, alias))
            elif now is not None and now != was:
                self.set_alias(model_name, alias, now)
        return found

    def aliases_by_log(
        self, model_name: str, versions: Sequence[RegisteredVersion], entries: Sequence[Promotion]
    ) -> dict[str, str]:
        """Alias -> the version that it has to point to; without those whose draft is not registered here."""
        drafts = {keys.CHAMPION: entries[-1].champion if entries else None, keys.PREVIOUS: previous_of(entries)}
        after: dict[str, str] = {}
        for alias, draft in drafts.items():
            with contextlib.suppress(TrackingError):  # who needs it will hear of it
                if draft is not None:
                    after[alias] = self.version_of(model_name, draft, versions).version
        promoted = {entry.champion.digest for entry in entries}
        judged = (version for version in versions if keys.VERDICT in version.tags)
        challenger = next((one for one in judged if one.tags.get(keys.DRAFT_DIGEST) not in promoted), None)
        if challenger is not None:
            after[keys.CHALLENGER] = challenger.version
        return after

    def _model_names(self) -> set[str]:
        return {str(model.name) for model in _pages(self._server.client.search_registered_models, None)}

    def _with_aliases(self, versions: list[RegisteredVersion]) -> list[RegisteredVersion]:
        # A search leaves aliases out; the model's own record has them all.
        if not versions:
            return []
        with self._server.named_errors():
            aliases = self._server.client.get_registered_model(versions[0].name).aliases
        by_version: dict[str, list[str]] = {}
        for alias, version in sorted(dict(aliases).items()):
            by_version.setdefault(str(version), []).append(alias)
        return [replace(version, aliases=tuple(by_version.get(version.version, ()))) for version in versions]


def _mlmodel(model_id: str, run_id: str, tags: Mapping[str, str]) -> str:
    """The file that MLflow's page of a version asks for: no flavour of MLflow's own, for none can load a draft."""
    return dumps(
        {
            "model_id": model_id,
            "run_id": run_id,
            "flavors": {"deepspec": {"code_version": tags.get(keys.CODE_VERSION, "")}},
        }
    )


def _with_card(notes: Mapping[str, str], card: str | None) -> dict[str, str]:
    return {**notes, **({CARD_FILE: card} if card is not None else {})}


def metrics_of(version: RegisteredVersion, values: Mapping[str, float], *, charted: bool = False) -> list[Any]:
    """MLflow's records of what was measured of a version; its number is the step.

    Args:
        version, values: of what, and what, by name.
        charted: for the chart of all versions, to which adding the same again changes nothing.
    """
    from mlflow.entities import Metric

    when = version.created_milliseconds if charted else int(time.time() * 1000)
    model = None if charted else version.logged_model
    return [Metric(name, value, when, int(version.version), model_id=model) for name, value in values.items()]


def add_to_chart(client: Any, run_id: str, *, version: RegisteredVersion, values: Mapping[str, float]) -> None:
    """Add what was measured of a version to the run whose charts show all versions of its model."""
    client.log_batch(run_id, metrics=metrics_of(version, values, charted=True))


def _pages(search: Callable[..., Any], query: str | None) -> Iterator[Any]:
    token = None
    while True:
        page = search(filter_string=query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _registered(version: Any, *, created: bool = False) -> RegisteredVersion:
    return RegisteredVersion(
        name=str(version.name),
        version=str(version.version),
        uri=f"models:/{version.name}/{version.version}",
        tags=dict(version.tags),
        run_id=version.run_id,
        created=created,
        description=str(version.description or ""),
        source=str(version.source or ""),
        created_milliseconds=int(version.creation_timestamp or 0),
    )


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
