"""demo_target: a small Qwen3-architecture target, trained by the library's own loop on the demo's corpus."""

from dataclasses import dataclass
from pathlib import Path

from deepspec.demo.config import Config
from deepspec.store import Artifact
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """What it is trained on."""

    corpus: Artifact
    tokenizer: Artifact


@stage(version=1, reads=("target", "train"))
def demo_target(inputs: Inputs, config: Config, out: Path, job: Job) -> StageCounts:
    """Train the demo's target and save it as a Hugging Face directory."""
    from deepspec.demo.target import write_target
    from deepspec.training.config import TrainingExecution

    counts = write_target(
        config,
        inputs.corpus.directory(),
        inputs.tokenizer.directory(),
        out,
        work_dir=job.work_folder,
        # On two quiet cores a second thread makes its small steps a quarter faster; next to other work it makes them
        # twice as slow, because the threads wait for each other thousands of times a second.
        execution=TrainingExecution(num_threads=1),
        metrics=lambda *_: None,
        progress=job.progress,
    )
    return StageCounts.model_validate(counts)
