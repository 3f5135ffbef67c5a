"""What production runs, on one machine and without containers.

PostgreSQL, an S3 server, MLflow with passwords, Prefect's server and one worker, each a plain process that outlives the
shell it was started from:

    python -m infra.stack up        starts what is not up, and waits until everything answers
    python -m infra.stack status    says what is up
    python -m infra.stack down      ends every process; the data stays

`settings` is what can be configured; `service` the two values that everything is made of: a `Stack` (folder, ports,
passwords) and a `Service` (how it is started, when it is healthy). One file per kind of server defines its services,
`services` lists them in order, `processes` starts and ends processes, and `lifecycle` is up, down and status.
"""
