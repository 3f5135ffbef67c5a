"""The demo's own inputs: a corpus, a tokenizer and a small target, made because nothing may be fetched.

    demo_corpus → demo_tokenizer → demo_target

The results are copied into `<home>/<name>/`, where the recipe finds them like any target and data; the retraining flow
knows nothing of them.
"""

import json

from deepspec.demo.config import Config
from deepspec.demo.inputs import SOURCES, copy
from deepspec.store import Artifact
from tasks.demo.corpus import demo_corpus
from tasks.demo.target import demo_target
from tasks.demo.tokenizer import demo_tokenizer
from tasks.runtime.flow import Outcome, flow
from tasks.runtime.run import Run


@flow
def demo_inputs(run: Run[Config]) -> Outcome:
    """Make the inputs of a demo recipe.

    Args:
        run: the run; `run.recipe` is the `Config` of `deepspec.demo`.

    Returns:
        the corpus (conversations and held-out benchmarks) and the target's folder. Requires nothing.
    """
    corpus = demo_corpus(run)
    tokenizer = demo_tokenizer(run, corpus=corpus)
    target = demo_target(run, corpus=corpus, tokenizer=tokenizer)
    made = {
        name: artifact for name, artifact in (("corpus", corpus), ("target", target)) if isinstance(artifact, Artifact)
    }
    if not run.dry and made:
        folder = run.home / run.recipe.name
        restored = [path for name, artifact in made.items() for path in copy(artifact, folder / name)]
        if restored:
            more = f" and {len(restored) - 1} more" if len(restored) > 1 else ""
            run.display.say(
                f"Warning: {restored[0]}{more} had been changed and was restored. To run on inputs of your own, copy "
                "them elsewhere and name them: --set data.source=… --set target.path=…"
            )
        sources = {name: [artifact.kind, artifact.key] for name, artifact in made.items()}
        sources |= {"tokenizer": [tokenizer.kind, tokenizer.key]} if isinstance(tokenizer, Artifact) else {}
        (folder / SOURCES).write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")
    return Outcome({"corpus": corpus, "target": target})
