"""Prefect's server, as the commands about nights ask it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from deepspec.errors import BadArgument, LaunchError
from tasks.runtime.prefect import server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

FLOW = "retrain"
TAG = "night"
"""Of every deployment that a file of nights made."""

OLD_ENTRYPOINTS = ("flows/nightly.py:retrain", "flows/deployed.py:retrain")
"""Of deployments that earlier versions made without one."""


@contextmanager
def asked(home: Path) -> Iterator["SyncPrefectClient"]:
    """A client of the configured server for the block.

    Raises:
        LaunchError: none is configured, it does not answer, does not let us in, or refuses what it was asked.
    """
    if not server.is_configured():
        raise LaunchError(
            "Nights are kept by a Prefect server, and none is configured.",
            where="PREFECT_API_URL",
            remedy="Set it to your server's address; `make stack` starts one for trying.",
        )
    with server.server(home):
        from prefect.client.orchestration import get_client

        try:
            with get_client(sync_client=True) as client:
                yield client
        except (httpx.HTTPError, RuntimeError) as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in (401, 403):
                raise LaunchError(
                    f"Prefect's server refused: {error.response.status_code} {error.response.text[:300]}",
                    where=error.request.url.path,
                    remedy="The server's log says more; what was applied before stays.",
                ) from error
            named = server.named(error)
            if named is None:
                raise
            raise named from error


def deployments(client: "SyncPrefectClient") -> "dict[str, DeploymentResponse]":
    """Model -> the deployment of its night, in the order of their names."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import DeploymentSort

    flow = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    found: dict[str, DeploymentResponse] = {}
    while page := client.read_deployments(flow_filter=flow, sort=DeploymentSort.NAME_ASC, offset=len(found), limit=200):
        found |= {deployment.name: deployment for deployment in page}
        if len(page) < 200:
            break
    return {name: each for name, each in found.items() if TAG in each.tags or each.entrypoint in OLD_ENTRYPOINTS}


def night_of(client: "SyncPrefectClient", model: str) -> "DeploymentResponse":
    """The deployment of a model's night.

    Raises:
        BadArgument: there is none.
    """
    found = deployments(client)
    if model not in found:
        known = ", ".join(found) or "none"
        raise BadArgument(
            f"there is no night of {model}; known: {known}.", remedy="`deepspec nights apply FILE` makes them."
        )
    return found[model]
