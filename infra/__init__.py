"""How deepspec is deployed: Prefect deployments, and a local stack of what production runs (`infra.stack`)."""
