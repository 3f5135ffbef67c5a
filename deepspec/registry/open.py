"""Opens the experiment tracker: by environment, or in the home folder."""

import os
from pathlib import Path

from deepspec.registry.mlflow.tracking import Tracking


def tracking_of(home: Path) -> Tracking:
    """MLflow: MLFLOW_TRACKING_URI, else a database in the home folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return Tracking(uri, None) if uri else Tracking.embedded(home)
