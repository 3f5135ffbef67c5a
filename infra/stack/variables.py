"""How clients find the servers: environment variables, each server's own and all of them together."""

import shlex

from infra.stack.service import Stack, write_private

BUCKET = "deepspec"
REGION = "us-east-1"
USER = "admin"
"""The account for MLflow and Prefect."""


def s3_variables(stack: Stack) -> dict[str, str]:
    """For boto3 and everything built on it."""
    return {
        "AWS_ENDPOINT_URL": stack.url("radosgw"),
        "AWS_ACCESS_KEY_ID": stack.secret("s3-access-key"),
        "AWS_SECRET_ACCESS_KEY": stack.secret("s3-secret-key"),
        "AWS_DEFAULT_REGION": REGION,
    }


def variables(stack: Stack) -> dict[str, str]:
    """For deepspec: the store, and every server."""
    return {
        "DEEPSPEC_STORE": f"s3://{BUCKET}/store",
        **s3_variables(stack),
        "MLFLOW_TRACKING_URI": stack.url("mlflow"),
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": stack.secret("mlflow-admin"),
        "PREFECT_API_URL": f"{stack.url('prefect')}/api",
        "PREFECT_API_AUTH_STRING": f"{USER}:{stack.secret('prefect-admin')}",
    }


def write_variables(stack: Stack) -> None:
    """Write them to the file `env`, for a shell to source; it holds passwords."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables(stack).items()]
    write_private(stack.folder / "env", "\n".join(lines) + "\n")
