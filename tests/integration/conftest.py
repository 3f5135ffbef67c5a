"""The end-to-end tests' cold run, for tests that compare with it."""

from tests.e2e.conftest import cold

__all__ = ["cold"]
