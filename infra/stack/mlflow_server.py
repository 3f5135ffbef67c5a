"""MLflow's server with basic authentication: runs and users in PostgreSQL, artifacts in S3, through the server."""

import sys

from infra.stack.postgres import database_url
from infra.stack.service import Command, Service, Stack, ask, write_private
from infra.stack.settings import HOST
from infra.stack.variables import BUCKET, USER, s3_variables

_AUTHENTICATION = """\
[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 300
"""
# Checking a password takes a tenth of a second of processor time, and a run asks hundreds of times. With one worker
# process, which makes all changes, a changed password counts at once nevertheless.


def _command(stack: Stack) -> Command:
    folder = stack.folder / "mlflow"
    folder.mkdir(mode=0o700, exist_ok=True)
    configuration = _AUTHENTICATION.format(
        database=database_url(stack, "mlflow_auth"), user=USER, password=stack.secret("mlflow-admin")
    )
    write_private(folder / "basic_auth.ini", configuration)
    environment = {
        **s3_variables(stack),
        "MLFLOW_S3_ENDPOINT_URL": stack.url("radosgw"),
        "MLFLOW_BACKEND_STORE_URI": database_url(stack, "mlflow"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": stack.secret("mlflow-sessions"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a second server's worth of memory for features not used here
        "DO_NOT_TRACK": "1",
    }
    arguments = ["--app-name", "basic-auth", "--host", HOST, "--port", str(stack.ports["mlflow"]), "--workers", "1"]
    arguments += ["--serve-artifacts", "--artifacts-destination", f"s3://{BUCKET}/mlflow"]
    return Command([sys.executable, "-m", "mlflow", "server", *arguments], environment, folder)


def _check(stack: Stack) -> None:
    url = f"{stack.url('mlflow')}/api/2.0/mlflow/experiments/search?max_results=1"
    ask(url, user=USER, password=stack.secret("mlflow-admin"))


MLFLOW = Service("mlflow", _command, _check, after=("postgres", "radosgw"))
