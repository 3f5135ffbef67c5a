"""The entry point of deployments that were registered before `nightly.py`; goes with the next release."""

from flows.nightly import retrain

__all__ = ["retrain"]
