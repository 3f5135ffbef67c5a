"""What takes hours in all and finds what a small sample does not: `make campaign PART=…`, a unit at a time.

A part is a parametrized test here; each of its cases is a *unit*, which leaves one line of figures:

    make campaign PART=faults ──► test_faults.py[0-9], [10-19], …  ──► .campaign/faults.jsonl   (every unit, as it ends)
                                                                   └─► tests/campaign/figures.json (each part's summary)

A unit that has ended well on this very code is not run again, so that a part may be stopped at any time and goes on
from there. `make test-full` runs a fixed small sample of each part, in the tests that the parts take their work from.
"""
