"""Retrain, judge and ship draft models for speculative decoding.

The library: everything that works without an orchestrator or a tracking server. Read `recipe.py` for what a run is
made of, `store/` for where results live, `drafts/algorithm.py` and `targets/family.py` for the two extension points.
"""

__version__ = "0.1.0"
