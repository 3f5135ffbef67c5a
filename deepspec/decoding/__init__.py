"""Lossless speculative decoding: the acceptance rule as pure functions, a batched engine, the plain baseline.

    generate ──► engine ──► drafter.propose       handed in: a draft, or none for the plain baseline
    evaluation ────┘  ├───► target.forward        handed in: verifies every proposal
                      ├───► scheduler ──► step_costs      how many drafted tokens are worth verifying
                      ├───► draws ──► verify, sampling, random     what is accepted, what is drawn
                      └───► contexts              the drafter's context of each row

Read `verify.py` first: it is why the output is exactly the target's. `config.py` says how answers are drawn,
`completion.py` what goes in and comes out; `profiling.py` measures the costs that the scheduler uses.
"""
