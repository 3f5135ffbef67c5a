"""Who asks for a promotion or a roll back: whoever a server has let in, not whoever a variable names."""

from deepspec.account import Actor
from deepspec.registry.mlflow.tracking import Tracking
from deepspec.store.backends.contract import Backend


def asker(tracking: Tracking, backend: Backend, claimed: str | None = None) -> Actor:
    """MLflow's user where its server has users; else whom the store has let in: an access key, or the local user.

    Costs one request where MLflow has a server, and one where the store is at AWS.

    Args:
        tracking, backend: that let somebody in.
        claimed: the name that a person gave; None: the one in the environment, if there is one.

    Raises:
        TrackingError: MLflow does not answer.
    """
    known = tracking.current_user() or backend.actor()
    return known.with_claim() if claimed is None else known.model_copy(update={"claimed": claimed})
