"""demo_tokenizer: a byte-level tokenizer with a chat template, trained on the demo's corpus."""

from dataclasses import dataclass
from pathlib import Path

from deepspec.demo.config import Config
from deepspec.store import Artifact
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.stage import stage


@dataclass(frozen=True)
class Inputs:
    """The text it is trained on."""

    corpus: Artifact


@stage(version=1, reads=("tokenizer",))
def demo_tokenizer(inputs: Inputs, config: Config, out: Path, job: Job) -> StageCounts:
    """Train the demo's tokenizer."""
    from deepspec.demo.tokenizer import write_tokenizer

    counts = write_tokenizer(config, inputs.corpus.directory(), out, progress=job.progress)
    return StageCounts.model_validate(counts)
