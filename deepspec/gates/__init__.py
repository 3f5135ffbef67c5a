"""Is this challenger better than the champion? Pure rules over measurements that were made elsewhere.

    tasks.gate ──► judge ──► tau          each gate one function: reasons for and against
                     ├─────► unseen       which prompts a draft may have trained on; they do not count
                     └─────► verdict      what they say together, bound to the champion they measured

To add a gate: its fields in `config.Config`, its function in a file like `tau.py`, its line in `judge.GATES`, and a
test per branch.
"""

from deepspec.gates.config import Config
from deepspec.gates.judge import GATES, judge
from deepspec.gates.verdict import Reason, Verdict

__all__ = ["GATES", "Config", "Reason", "Verdict", "judge"]
