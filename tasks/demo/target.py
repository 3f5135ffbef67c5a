"""demo_target: a small Qwen3-architecture target, trained by the library's own loop on the demo's corpus."""

from pathlib import Path
from typing import Any

from deepspec.demo.config import Config
from tasks.runtime.run import Run
from tasks.runtime.stage import stage


@stage(version=1, reads=("target", "train"))
def demo_target(run: Run[Config], out: Path, *, corpus: Path, tokenizer: Path) -> dict[str, Any]:
    """Train the demo's target and save it as a Hugging Face directory."""
    from deepspec.demo.target import write_target
    from deepspec.training.config import Execution

    return write_target(
        run.recipe,
        corpus,
        tokenizer,
        out,
        work_dir=run.work_folder,
        # On two quiet cores a second thread makes its small steps a quarter faster; beside anything else it makes them
        # twice as slow, because the threads wait for each other thousands of times a second.
        execution=Execution(num_threads=1),
        metrics=lambda *_: None,
        progress=run.progress,
    )
