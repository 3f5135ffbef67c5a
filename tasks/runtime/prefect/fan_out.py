"""Parts of a stage at once, by Prefect's task runners: threads, processes, or a Dask or Ray cluster."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from deepspec.errors import DeepspecError, LaunchError, RecipeError
from tasks.runtime.job import Job

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

PartT = TypeVar("PartT")

_LOOK_SECONDS = 1.0


def in_parts(
    job: Job,
    name: str,
    function: Callable[[PartT], None],
    parts: Sequence[PartT],
    *,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Call `function` with every part, all at once, by `run.task_runner`.

    All parts come to their end, also when one fails: what they finish counts.

    Args:
        job: of the stage.
        name: of the parts on Prefect's pages.
        function: of a module, with nothing but its part, which can be pickled.
        parts: one per worker.
        look: called about every second meanwhile.

    Raises:
        DeepspecError: what the first part that failed ended with.
        LaunchError: a worker died.
        RecipeError: the task runner is not installed.
    """
    import httpx
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.futures import wait

    if not parts:
        return
    part = task(name=name, cache_policy=NO_CACHE, persist_result=False)(function)
    with _task_runner(job.execution.task_runner, len(parts)) as runner:
        futures = [runner.submit(part, {"part": one}) for one in parts]
        while wait(futures, timeout=_LOOK_SECONDS).not_done:
            look()
        for future in futures:
            try:
                future.result(raise_on_failure=True)
            except (DeepspecError, httpx.HTTPError):
                raise  # an error of our own, or of Prefect's server, which is named where the flow is run
            except Exception as error:
                raise LaunchError(
                    f"A worker of {name} failed: {' '.join(str(error).split()) or type(error).__name__}.",
                    where=f"run.task_runner {job.execution.task_runner}",
                    remedy="Run again to go on: what was finished is kept. "
                    "Fewer shard workers (run.num_shard_workers) need less memory.",
                ) from error


def _task_runner(kind: str, num_workers: int) -> "TaskRunner[Any]":
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    if kind == "threads":
        return ThreadPoolTaskRunner(max_workers=num_workers)
    if kind == "processes":
        return ProcessPoolTaskRunner(max_workers=num_workers)
    try:
        if kind == "dask":
            from prefect_dask import DaskTaskRunner

            # Without an address (PREFECT_DASK_ADDRESS names a scheduler) it starts workers on this machine.
            runner: TaskRunner[Any] = DaskTaskRunner(
                cluster_kwargs={"n_workers": num_workers, "threads_per_worker": 1, "dashboard_address": None}
            )
            return runner
        from prefect_ray import RayTaskRunner

        runner = RayTaskRunner()
    except ImportError as error:
        raise RecipeError(
            f"The task runner {kind} is not installed.",
            where="run.task_runner",
            remedy=f"`pip install prefect-{kind}`, or take threads or processes.",
        ) from error
    return runner
