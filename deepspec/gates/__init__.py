"""Is this challenger better than the champion? Pure rules over measurements that were made elsewhere.

`judge` puts every gate of `GATES` to the `gate` part of two evaluations and binds the verdict to the champion it was
measured against. To add a gate: its fields in `config.Config`, its function in a file like `tau.py`, its line in
`judge.GATES`, and a test per branch.
"""

from deepspec.gates.config import Config
from deepspec.gates.judge import GATES, judge
from deepspec.gates.verdict import Reason, Verdict

__all__ = ["GATES", "Config", "Reason", "Verdict", "judge"]
