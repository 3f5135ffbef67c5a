"""What was trained, what is served, and since when.

`promotions.py` is the truth about the champion: an append-only log in the store, free of MLflow. `mlflow/tracking.py`
is the only module that knows MLflow: runs, metrics, registered versions, and the alias `champion` as the log's
projection. `keys.py` lists every parameter, tag and metric that is written there.
"""
