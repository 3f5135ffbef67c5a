"""A fixed sample of what `make campaign PART=drift` counts, and the parts that it is made of; seconds in all."""

import numpy as np
import pytest

from deepspec.evaluation.intervals import estimate, ratio
from deepspec.monitoring.detector import DROPS, THRESHOLD, Scale, advanced, begun, evidence, is_alarm
from deepspec.monitoring.references import Level, Registered, registered, reweighted
from deepspec.monitoring.streams import ALL_TRAFFIC, BURN_IN, PILOT, WITHIN, StreamState
from deepspec.monitoring.sums import Sums, merged
from deepspec.monitoring.traffic import MOST_DOMAINS, Streams
from tests.fixtures.simulated_traffic import (
    DOMAINS,
    Served,
    Simulation,
    answers,
    delay,
    everywhere,
    false_alarms,
    true_tau,
)


def test_an_e_value_has_a_mean_of_at_most_one() -> None:
    """Over 40,000 windows of eight answers with a heavy tail, whose loss has a mean of 0."""
    draws = np.random.default_rng(1)
    losses = draws.standard_t(5, (40_000, 8)) * 3.0
    values = np.exp([evidence(window, Scale(tokens=10.0, variance=9.0 * 5 / 3)) for window in losses])
    error = values.std(0) / np.sqrt(len(values))
    assert (values.mean(0) <= 1.0 + 3.0 * error).all()
    assert (values.mean(0)[: DROPS.index(0.2)] > 0.95).all()  # and nothing is given away by bets that are not large


def test_evidence_grows_only_with_losses() -> None:
    scale = Scale(tokens=40.0, variance=200.0)
    lost, level, gained = (evidence(np.full(90, mean), scale) for mean in (4.0, 0.0, -4.0))
    place = DROPS.index(0.1)
    assert lost[place] > 3.0
    assert (level < 0.0).all()
    assert (gained < level).all()


def test_evidence_of_earlier_windows_is_kept() -> None:
    """A change counts from the window in which it happened: quiet windows before it cost nothing."""
    quiet, lost = np.full(len(DROPS), -5.0), np.full(len(DROPS), 2.0)
    late = begun()
    for window in [quiet] * 30 + [lost] * 4:
        late = advanced(late, window)
    early = begun()
    for window in [lost] * 4:
        early = advanced(early, window)
    assert not is_alarm(begun())
    assert np.allclose(late, early, atol=0.01)
    assert is_alarm(advanced(early, np.full(len(DROPS), np.log(THRESHOLD))))


def test_sums_say_what_the_answers_say() -> None:
    """The interval from sums is the jackknife's, where there are many answers."""
    table = answers(np.random.default_rng(2), 1, 900)
    sums = Sums.of([(int(tokens), int(rounds)) for tokens, rounds in table])
    halves = [Sums.of([(int(tokens), int(rounds)) for tokens, rounds in part]) for part in (table[:100], table[100:])]
    exact, found = estimate(table, lambda sums_S2: ratio(*sums_S2.T)), sums.estimate()
    assert exact is not None
    assert found is not None
    assert found.value == pytest.approx(exact.value, rel=1e-12)
    assert found.error == pytest.approx(exact.error, rel=0.01)
    assert merged([{"a": halves[0]}, {"a": halves[1]}]) == {"a": sums}
    assert sums.squared_losses(4.0) == pytest.approx(float(((4.0 * table[:, 1] - table[:, 0]) ** 2).sum()))


def test_what_was_registered_is_reweighted_to_the_mix() -> None:
    counts = {
        "gsm8k": {"a": (40, 10), "b": (44, 10)},
        "math500": {"a": (20, 10), "b": (24, 10)},
        "own": {"a": (10, 10), "b": (12, 10)},
        "gate": {"a": (30, 10), "b": (34, 10)},
    }
    known = registered(counts, {"gsm8k": "math", "math500": "math", "own": None})
    assert {name: level.tau for name, level in known.domains.items()} == pytest.approx({"math": 3.2, "own": 1.1})
    assert known.whole is not None
    assert known.whole.tau == pytest.approx(3.2)
    assert known.aliases == {"gsm8k": "math", "math500": "math", "own": "own"}
    mix = {"math": Sums.of([(0, 30)]), "own": Sums.of([(0, 10)]), "unknown": Sums.of([(0, 999)])}
    found = reweighted(known.domains, mix)
    assert found is not None
    assert found.tau == pytest.approx(0.75 * 3.2 + 0.25 * 1.1)
    assert reweighted(known.domains, {"unknown": mix["unknown"]}) is None


@pytest.mark.parametrize("served", [Served(1000), Served(30), Served(0), Served(30, labelled=False)], ids=str)
def test_nothing_is_found_where_nothing_happens(served: Served) -> None:
    assert sum(false_alarms([11, seed], served, 40) for seed in range(6)) <= 1  # 0.2 are allowed in each


@pytest.mark.parametrize("stream", [ALL_TRAFFIC, "chat"])
@pytest.mark.parametrize("prompts", [1000, 30, 0])
def test_a_tenth_is_found_soon(stream: str, prompts: int) -> None:
    """Whatever the size of the registration: after its burn-in, a stream is compared with that as well."""
    found = [delay([12, seed], Served(prompts), stream, 0.1) for seed in range(6)]
    assert sum(one is not None and one <= WITHIN for one in found) >= 5


def test_a_small_registration_says_that_it_finds_little() -> None:
    """Of 30 prompts a drop of a tenth cannot be told from the registration's luck, of 1,000 it can; a burn-in can."""
    small, large = (Simulation([13], Served(prompts)) for prompts in (30, 1000))
    for simulated in (small, large):
        simulated.serve(PILOT + 2)
    by_small, by_large = (next(iter(one.streams)) for one in (small, large))
    assert (by_small.smallest_drop("registered") or 0.0) > 0.1
    assert 0.0 < (by_large.smallest_drop("registered") or 1.0) < 0.1
    assert by_small.smallest_drop("burn_in") is None  # it has none yet
    small.serve(BURN_IN)
    assert 0.0 < (by_small.smallest_drop("burn_in") or 1.0) < 0.1


def test_a_draft_that_is_broken_from_the_start_is_found_by_what_was_registered() -> None:
    simulated = Simulation([14], Served(30))
    [first, *_] = simulated.serve(PILOT + 2, drops=everywhere(0.6))
    assert first.against == "registered"
    assert first.window <= PILOT + 2
    assert first.drop > 0.4


def test_an_alarm_says_since_when_and_by_how_much() -> None:
    simulated = Simulation([15], Served(1000))
    simulated.serve(30)
    began = simulated.windows(ALL_TRAFFIC)
    [found, *_] = [
        one for one in simulated.serve(12, drops=everywhere(0.2), until_alarm=True) if one.stream == ALL_TRAFFIC
    ]
    assert abs(found.since - began - 1) <= 1
    assert 0.1 < found.drop < 0.3
    assert found.tau_ci95 is not None
    assert found.tau_ci95[1] < found.reference_ci95[0]


def test_a_change_raises_one_alarm_against_each_reference() -> None:
    """Afterwards what is served is the new burn-in, and what was registered is tested no more."""
    simulated = Simulation([16], Served(1000))
    simulated.serve(25)
    found = [one.against for one in simulated.serve(60, drops=everywhere(0.25)) if one.stream == ALL_TRAFFIC]
    assert found
    assert len(found) == len(set(found))


def test_a_shift_of_the_mix_is_no_drop_of_what_was_registered() -> None:
    """Each answer is compared with its own domain; the burn-in is compared as it was, and falls."""
    simulated = Simulation([17], Served(1000, mix=(0.1, 0.3, 0.6)))
    simulated.serve(25)
    found = simulated.serve(12, mix=(0.9, 0.05, 0.05))
    assert {(one.stream, one.against) for one in found} == {(ALL_TRAFFIC, "burn_in")}


def test_a_memory_goes_on_where_it_was() -> None:
    """Read back from JSON in the middle of a window, it finds the same as one that never stopped."""
    known = Registered(whole=Level(tau=4.4, error=0.05, freedom=900.0, prompts=900))
    table = np.vstack([answers(np.random.default_rng(3), 1, 2000), answers(np.random.default_rng(4), 0, 1500)])
    one, other = Streams(known), Streams(known)
    whole: list[object] = []
    parts: list[object] = []
    for place, (tokens, rounds) in enumerate(table.astype(int)):
        whole += one.take(int(tokens), int(rounds), "own")
        if place % 517 == 0:
            states = {name: StreamState.model_validate(state.to_json()) for name, state in other.states().items()}
            other = Streams(known, states)
        parts += other.take(int(tokens), int(rounds), "own")
    assert whole
    assert whole == parts
    assert one.states() == other.states()


def test_labels_without_end_are_one_domain() -> None:
    streams = Streams(Registered())
    for place in range(100):
        streams.take(4, 1, f"label {place}")
    names = [one.name for one in streams]
    assert len(names) == MOST_DOMAINS + 2
    assert names[0] == ALL_TRAFFIC
    assert names[-1] == "other"


def test_simulated_traffic_has_the_tau_that_it_is_said_to_have() -> None:
    draws = np.random.default_rng(5)
    for domain in range(len(DOMAINS)):
        table = answers(draws, domain, 20_000)
        assert table[:, 0].sum() / table[:, 1].sum() == pytest.approx(true_tau(domain), rel=0.01)
