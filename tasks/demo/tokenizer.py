"""demo_tokenizer: a byte-level tokenizer with a chat template, trained on the demo's corpus."""

from pathlib import Path
from typing import Any

from deepspec.demo.config import Config
from tasks.runtime.run import Run
from tasks.runtime.stage import stage


@stage(version=1, reads=("tokenizer",))
def demo_tokenizer(run: Run[Config], out: Path, *, corpus: Path) -> dict[str, Any]:
    """Train the demo's tokenizer."""
    from deepspec.demo.tokenizer import write_tokenizer

    return write_tokenizer(run.recipe, corpus, out, progress=run.progress)
