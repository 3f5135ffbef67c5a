"""The retraining flow: from conversations to a promoted draft.

    conversations → responses → tokens → states → train → calibrate → evaluate → register → gate → promote

Read it as the DAG. Every call is a cached stage: found in the store by its key, or made now. The same function previews
(nothing runs) and runs.
"""

from deepspec.recipe import Recipe
from tasks.calibrate import calibrate
from tasks.conversations import conversations
from tasks.evaluate import evaluate
from tasks.gate import gate
from tasks.promote import promote
from tasks.register import register
from tasks.resolve import (
    benchmarks_of,
    captured_files,
    champion_to_beat,
    layer_ids,
    live_states,
    promoted,
    refused,
    source_of,
    target_of,
    warm_start,
)
from tasks.responses import responses
from tasks.runtime.flow import Outcome, flow
from tasks.runtime.references import Reference
from tasks.runtime.run import Run
from tasks.states import states
from tasks.tokens import tokens
from tasks.train import train


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

    asked = conversations(run, source=source, benchmarks=benchmarks)
    answered = responses(run, conversations=asked, target=target)
    tokenised = tokens(run, responses=answered, target=target)
    captured: Reference | None = live_states(run, tokenised)
    if captured is None:
        captured = states(run, tokens=tokenised, target=target, layer_ids=layer_ids(run), **captured_files(run))
    else:
        run.skip(states.name, "captured live, while training")

    draft = train(run, states=captured, tokens=tokenised, target=target, **warm_start(run))
    calibration = calibrate(run, draft=draft, responses=answered, target=target)
    evaluation = evaluate(
        run, draft=draft, calibration=calibration, responses=answered, target=target, benchmarks=benchmarks
    )
    made = {"draft": draft, "calibration": calibration, "evaluation": evaluation}
    if not ship:
        return Outcome(made)

    registration = register(run, draft=draft, calibration=calibration, evaluation=evaluation)
    champion = champion_to_beat(run, draft)
    verdict = gate(run, evaluation=evaluation, champion=champion, draft=draft, responses=answered, target=target)
    made |= {"registration": registration, "verdict": verdict}
    if refused(verdict):
        run.skip(promote.name, "the gate refused")
        return Outcome(made, "refused")
    promotion = promote(run, registration=registration, verdict=verdict, draft=draft)
    return Outcome({**made, "promotion": promotion}, "promoted" if promoted(run, promotion) else "no_change")
