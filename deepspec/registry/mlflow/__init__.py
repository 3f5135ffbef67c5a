"""The only room that knows MLflow, which it imports when it is first needed.

    tracking ──► versions ──► connection    registered versions and their alias; a client with typed errors
        │                         └──► schema ──► database    the SQLite file of a home
        ├──────► runs                       one run: batches within MLflow's limits
        └──────► outbox                     what is tracked while the server does not answer

`Tracking` is the interface. It decides nothing: the store and the promotion log are the truth, MLflow shows it.
"""
