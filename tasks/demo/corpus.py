"""demo_corpus: conversations of three kinds, and benchmark prompts that never occur among them."""

from pathlib import Path
from typing import Any

from deepspec.demo.config import Config
from tasks.runtime.run import Run
from tasks.runtime.stage import stage


@stage(version=1, reads=("corpus",))
def demo_corpus(run: Run[Config], out: Path) -> dict[str, Any]:
    """Generate the demo's conversations and held-out benchmarks."""
    from deepspec.demo.corpus import write_corpus

    return write_corpus(run.recipe, out, progress=run.progress)
