"""Everything that the stack runs, in the order in which it is started; it is ended in the reverse order."""

from infra.stack.mlflow_server import MLFLOW
from infra.stack.postgres import POSTGRES
from infra.stack.prefect_server import PREFECT_SERVICES
from infra.stack.s3 import S3_SERVICES
from infra.stack.service import Service

SERVICES: tuple[Service, ...] = (POSTGRES, *S3_SERVICES, MLFLOW, *PREFECT_SERVICES)
