"""demo_corpus: conversations of three kinds, and benchmark prompts that never occur among them."""

from pathlib import Path

from deepspec.demo.config import Config
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.references import NoInputs
from tasks.runtime.stage import stage


@stage(version=1, reads=("corpus",))
def demo_corpus(inputs: NoInputs, config: Config, out: Path, job: Job) -> StageCounts:  # noqa: ARG001
    """Generate the demo's conversations and held-out benchmarks."""
    from deepspec.demo.corpus import write_corpus

    return StageCounts.model_validate(write_corpus(config, out, progress=job.progress))
