"""Writes a bundle: a draft's export, with the files that engines and people need."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.bundle import commands
from deepspec.bundle.index import (
    INDEX_FILE,
    Bundle,
    BundledDraft,
    BundledPromotion,
    BundledTarget,
    files_in,
)
from deepspec.bundle.target import ServedTarget, served_target
from deepspec.drafts.files.public_files import Origin
from deepspec.export.described import Described
from deepspec.export.engine_files import DRAFT_LENGTHS, STEP_RATES, EngineFiles, engine_files
from deepspec.export.matrix import DEEPSPEC, Cell, cell
from deepspec.foreign_json import strict_text
from deepspec.registry import draft_export
from deepspec.registry.card import CARD_FILE, CardBundle, CardDraft, model_card
from deepspec.registry.card_facts import CardFacts, card_draft, facts_of, origin_in
from deepspec.registry.draft_names import draft_directory
from deepspec.store import Artifact, Store

PLOTS = "plots"
_WHAT = {
    "sglang-temperatures.json": "temperatures of confidences, for SGLang's --speculative-dspark-confidence-sts-path",
    "sglang-step-rates.json": "steps per second by tokens verified, for SGLang's --speculative-dspark-sps-table-path",
    "vllm-draft-lengths.json": "drafted tokens by batch size, vLLM's num_speculative_tokens_per_batch_size: those with"
    " the most tokens per second, (1 + a_1 + … + a_k) / cost(batch, k), by measured costs and acceptance",
    "vllm-acceptance.json": "P(the first k tokens are all accepted) by domain, vLLM's synthetic_acceptance_rates",
    "vllm.sh": "starts vLLM",
    "sglang.sh": "starts SGLang",
    "vllm-capacity.sh": "starts vLLM with a domain's acceptance from the table and random weights: shows capacity",
}


@dataclass(frozen=True)
class _Bundled:
    """All that a bundle is written from."""

    weights_format: str
    cell: Cell
    row: str
    draft: CardDraft
    facts: CardFacts
    origin: Origin | None
    target: ServedTarget
    engine: EngineFiles
    found: Artifact | Path


def write(
    name: str, format_name: str, out: Path, target: str, *, home: Path, store: Store, force: bool = False
) -> Path:
    """Write the bundle of the draft that `name` means to the new directory `out`.

    Args:
        name, format_name, out, home, store, force: as for `draft_export.write`.
        target: the target's folder, which is compared with the draft's lineage, or its name at a hub; "": none.

    Returns:
        Where it was written.

    Raises:
        as `draft_export.write`, and `served_target`.
    """

    def add(part: Path, found: Artifact | Path) -> None:
        _add(part, found, format_name, target, home=home, store=store)

    named = "" if Path(target).is_dir() else target
    return draft_export.write(name, format_name, out, named, home=home, store=store, force=force, add=add)


def _add(part: Path, found: Artifact | Path, format_name: str, target: str, *, home: Path, store: Store) -> None:
    folder = draft_directory(found)
    described = Described.read(folder)
    facts = facts_of(found, store) if isinstance(found, Artifact) else CardFacts()
    draft = card_draft(folder)
    what = _Bundled(
        weights_format=format_name,
        cell=cell(format_name, described.spec.family, described.row),
        row=described.row,
        draft=draft,
        facts=facts,
        origin=origin_in(found) if isinstance(found, Artifact) else None,
        target=served_target(target, facts.target, memo=home / "fingerprints.json"),
        engine=engine_files(
            facts.calibration,
            facts.evaluation,
            draft.num_draft_tokens,
            has_confidences=bool(described.written.get("enable_confidence_head")),
        ),
        found=found,
    )
    named = what.target.name or commands.TARGET
    started = commands.engine_commands(
        format_name,
        what.cell.method,
        named,
        draft.num_draft_tokens,
        what.engine.contents,
        what.target.revision,
    )
    serving = part / commands.FOLDER
    serving.mkdir()
    for file, content in what.engine.contents.items():
        (serving / file).write_text(strict_text(content, indent=1) + "\n", encoding="utf-8", newline="\n")
    for file, text in commands.scripts(started, named).items():
        (serving / file).write_text(text, encoding="utf-8", newline="\n")
    figures = _draw(what, part / PLOTS)
    (part / CARD_FILE).write_text(_card(what, part, figures), encoding="utf-8", newline="\n")
    (part / INDEX_FILE).write_text(_index(what, part, started).text(), encoding="utf-8", newline="\n")


def _draw(what: _Bundled, folder: Path) -> list[tuple[str, str]]:
    """Write the report's figures of the draft; (path in the bundle, words) of each."""
    from deepspec.reports.rendering import INDEX, Figures
    from deepspec.reports.sections.acceptance import evaluated

    figures = Figures()
    evaluated(what.facts.evaluation, what.facts.calibration, None, figures)
    figures.write(folder)
    (folder / INDEX).unlink()
    drawn = sorted(folder.glob("*.png"))
    if not drawn:
        folder.rmdir()
    return [(f"{PLOTS}/{path.name}", path.stem.replace("-", " ")) for path in drawn]


def _left_out(what: _Bundled) -> dict[str, str]:
    left_out = {f"{commands.FOLDER}/{name}": reason for name, reason in what.engine.left_out.items()}
    if what.weights_format == DEEPSPEC:
        left_out[f"{commands.FOLDER}/*.sh"] = "no engine is named that reads this format: export with --format vllm"
    return left_out


def _card(what: _Bundled, part: Path, figures: list[tuple[str, str]]) -> str:
    facts, found = what.facts, what.found
    code: dict[str, Any] = dict(found.manifest.code) if isinstance(found, Artifact) else {}
    there = sorted(path.relative_to(part).as_posix() for path in (part / commands.FOLDER).iterdir())
    digests = {"draft": found.digest} if isinstance(found, Artifact) else {}
    if facts.target is not None:
        digests["target"] = facts.target
    return model_card(
        name=facts.name or what.draft.algorithm,
        recipe=facts.recipe,
        draft=what.draft,
        target=what.target.name or "the target of the fingerprint below",
        digests=digests,
        sources=facts.sources,
        evaluation=facts.evaluation,
        calibration=facts.calibration,
        origin=what.origin,
        started_outside=facts.started_outside,
        bundle=CardBundle(
            format=what.weights_format,
            kind=what.row,
            checked=what.cell.checked if what.weights_format != DEEPSPEC else None,
            base_model=what.target.name,
            revision=what.target.revision,
            licence=_licence(what),
            lineage=[(one.kind, one.key, one.digest) for one in facts.lineage],
            figures=figures,
            files={name: _WHAT[name.split("/")[-1]] for name in there},
            left_out=_left_out(what),
            code=code,
        ),
    )


def _licence(what: _Bundled) -> str | None:
    return (what.origin.licence if what.origin is not None else None) or what.target.licence


def _index(what: _Bundled, part: Path, started: dict[str, tuple[str, ...]]) -> Bundle:
    facts, found, target = what.facts, what.found, what.target
    artifact = found if isinstance(found, Artifact) else None
    promotion = facts.promotion
    load = facts.evaluation.load if facts.evaluation is not None else None
    costs = {STEP_RATES, DRAFT_LENGTHS} & set(what.engine.contents)
    return Bundle(
        weights_format=what.weights_format,
        draft=BundledDraft(
            model=facts.name,
            version=promotion.champion.version if promotion is not None else None,
            kind=artifact.kind if artifact else None,
            key=artifact.key if artifact else None,
            digest=artifact.digest if artifact else None,
            algorithm=what.draft.algorithm,
            num_draft_tokens=what.draft.num_draft_tokens,
        ),
        target=BundledTarget(
            name=target.name, revision=target.revision, fingerprint=facts.target or target.fingerprint
        ),
        licence=_licence(what),
        promotion=BundledPromotion(
            model=promotion.model, number=promotion.number, when=promotion.when.isoformat(timespec="seconds")
        )
        if promotion is not None
        else None,
        commands=started,
        measured=f"{load.device}, {load.threads} threads, deepspec's decoder" if load is not None and costs else None,
        left_out=_left_out(what),
        files=files_in(part),
    )
