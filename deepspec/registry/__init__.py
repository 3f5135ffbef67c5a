"""What was trained, what is served, and since when.

    tasks.promote ───► promotions                  the truth about the champion: an append-only log in the store
    tasks.register ──► mlflow ──► promotions       runs, metrics, versions; the alias `champion` follows the log
    deepspec models ─► operations ──► open         list, promote, roll back, reconcile
    deepspec export ─► draft_export ─► draft_names ──► open      a directory, train/<key>, models:/<name>@champion
    deepspec backup ─► backup ──► promotions       a copy of the home folder
                          open ──► mlflow          the tracker of MLFLOW_TRACKING_URI, or of the home folder

`keys.py` lists every parameter, tag and metric that is written, `card.py` writes a draft's card, `errors.py` says what
can go wrong between a trained draft and a served one. Only the room `mlflow/` imports MLflow.
"""
