"""The retraining flow: from conversations to a promoted draft.

    conversations → responses → tokens → states → train → calibrate → evaluate → register → gate → promote

Read it as the DAG. Every call is a cached stage: found in the store by its key, or made now. The same function previews
(nothing runs) and runs.
"""

from collections.abc import Mapping
from dataclasses import replace

from deepspec.recipe import Recipe
from deepspec.registry.errors import PromotionConflict
from tasks.calibrate import calibrate
from tasks.contest import (
    asked_in,
    awaits_approval,
    champion_to_beat,
    check_contest,
    how_to_approve,
    look_at,
    promoted,
    refused,
    refused_before,
    serves,
    why_blocked,
    why_not_judged,
)
from tasks.conversations import conversations
from tasks.evaluate import evaluate
from tasks.gate import gate
from tasks.promote import promote
from tasks.register import register
from tasks.resolve import benchmarks_of, captured_files, layer_ids, live_states, source_of, target_of
from tasks.responses import responses
from tasks.runtime.flow import Outcome, flow
from tasks.runtime.references import Reference
from tasks.runtime.run import Run
from tasks.start import beginning_of
from tasks.states import states
from tasks.tokens import tokens
from tasks.train import train

NOT_ANY_MORE = "It is champion already, and stays; by the gates as they are now it would be refused."
NUM_RACES = 3
"""So often a challenger is judged against a new champion while others promote theirs."""


@flow
def retrain(run: Run[Recipe], *, ship: bool = True) -> Outcome:
    """Retrain, judge and ship one draft.

    Args:
        run: the run; `run.recipe` is a `Recipe`.
        ship: False: the draft is trained, calibrated and evaluated, and nothing else.

    Returns:
        the artifacts a run is reported by: draft, evaluation and calibration; and of what is shipped registration,
        verdict, and promotion if there was one. Cache policy: the artifact store's keys. Requires: the target and the
        sources named by the recipe.
    """
    target, source, benchmarks = target_of(run), source_of(run), benchmarks_of(run)
    replaced = check_contest(run, target) if ship else ()

    asked = conversations(run, source=source, benchmarks=benchmarks)
    answered = responses(run, conversations=asked, target=target)
    tokenised = tokens(run, responses=answered, target=target)
    captured: Reference | None = live_states(run, tokenised)
    if captured is None:
        captured = states(run, tokens=tokenised, target=target, layer_ids=layer_ids(run), **captured_files(run))
    else:
        run.skip(states.name, "captured live, while training")

    learned = {"states": captured, "tokens": tokenised, "target": target}
    beginning = beginning_of(run, train, learned)
    draft = train(run, **learned, **beginning.inputs)
    calibration = calibrate(run, draft=draft, responses=answered, target=target)
    evaluation = evaluate(
        run, draft=draft, calibration=calibration, responses=answered, target=target, benchmarks=benchmarks
    )
    made: dict[str, Reference] = {"draft": draft, "calibration": calibration, "evaluation": evaluation}
    notes = (*replaced, *beginning.notes)
    if not ship:
        return Outcome(made, notes=notes)
    outcome = judge_and_ship(run, made, answered=answered, target=target, benchmarks=benchmarks)
    return replace(outcome, notes=(*notes, *outcome.notes))


def judge_and_ship(
    run: Run[Recipe], made: Mapping[str, Reference], *, answered: Reference, target: Reference, benchmarks: Reference
) -> Outcome:
    """The end of every flow that makes a draft: register → gate → promote.

    Args:
        run: the run.
        made: draft, calibration and evaluation, by these names.
        answered: the answers whose gate split it is judged on.
        target, benchmarks: what it was evaluated with.

    Returns:
        `made` with registration, verdict, and promotion if there was one; and how the run ended.
    """
    draft, calibration, evaluation = (made[name] for name in ("draft", "calibration", "evaluation"))
    made = dict(made)
    made["registration"] = register(run, draft=draft, calibration=calibration, evaluation=evaluation)
    blocked = why_blocked(run, draft)
    if blocked is not None:
        run.skip(gate.name, "the draft is blocked")
        run.skip(promote.name, "the draft is blocked")
        return Outcome(made, "refused", (blocked,))
    settled = why_not_judged(run, draft)
    if settled is not None:
        run.skip(gate.name, "the draft is champion")
        run.skip(promote.name, "the draft is champion")
        return Outcome(made, "no_change", (settled,))
    judged = {"responses": answered, "target": target, "benchmarks": benchmarks}
    judged |= {"evaluation": evaluation, "calibration": calibration, "draft": draft}
    for race_is_last in (*[False] * (NUM_RACES - 1), True):
        champion = champion_to_beat(run, draft)
        look, asked = look_at(run, champion, draft, answered), asked_in(run, draft)
        verdict = gate(run, champion=champion, look=look, **judged, **asked)
        made["verdict"] = verdict
        if refused(verdict):
            run.skip(promote.name, "the gate refused")
            if serves(run, draft):
                return Outcome(made, "no_change", (NOT_ANY_MORE,))
            before = refused_before(run, verdict)
            return Outcome(made, "refused") if before is None else Outcome(made, "no_change", (before,))
        if awaits_approval(run, draft, target):
            run.skip(promote.name, "a person has to approve it")
            return Outcome(made, "awaiting_approval", how_to_approve(made["registration"]))
        try:
            made["promotion"] = promote(run, registration=made["registration"], verdict=verdict, draft=draft)
            break
        except PromotionConflict as lost:
            if race_is_last:
                raise
            run.display.say(f"{lost.what} The gate is asked again.")
    return Outcome(made, "promoted" if promoted(run, made["promotion"]) else "no_change")
