"""What was trained, what is served, and since when.

    tasks.promote ───► promotions ──► blocks ──► entries     the truth: an append-only log in the store
    tasks.register ──► mlflow ──► promotions                 runs, metrics, versions; aliases follow the log
    end of a run ────► reconciling ──► mlflow                MLflow is made to say what the store says
    deepspec models ─► operations, show ──► open             list, show, promote, roll back, reconcile
    after all of these following ──► publishing, production  production's store and MLflow follow the log
    deepspec export ─► draft_export ─► draft_names ──► open  a directory, train/<key>, models:/<name>@champion
    deepspec backup ─► backup ──► promotions                 a copy of the home folder
                          open ──► mlflow                    the tracker of MLFLOW_TRACKING_URI, or of the home folder

`keys.py` lists every parameter, tag, metric and alias that is written, `card.py` writes a draft's card, `errors.py`
says what can go wrong between a trained draft and a served one, `identity.py` when two drafts are the same for a roll
back, `asker.py` who asks, `looks.py` how often a champion was challenged, `batches.py` which entries of a copied log
count together, `version_record.py` what is known of a version where its inputs are not, `records.py` what these ask of
the store's backend. Only the room `mlflow/` imports MLflow.
"""
