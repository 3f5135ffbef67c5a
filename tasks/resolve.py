"""What enters a run from outside, resolved before any key is made: target, sources, benchmarks.

Never cached: content is fingerprinted in every run (a memo by size and time only saves the reading).
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.config import left_out_of_key
from deepspec.drafts import ALGORITHMS
from deepspec.drafts.algorithm import Algorithm
from deepspec.errors import DataError
from deepspec.evaluation.known_benchmarks import VARIABLE
from deepspec.store import Artifact
from deepspec.store.fingerprint import External, model_files
from deepspec.store.keys import digest_of
from tasks.runtime.references import Pending, Reference, Value
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.data.sources.finding import Source
    from deepspec.evaluation.config import Benchmark
    from deepspec.recipe import Recipe

logger = logging.getLogger(__name__)


def target_of(run: "Run[Recipe]") -> External | Pending:
    """The target: weights, configuration, tokenizer, chat templates and generation configuration, by content.

    Raises:
        UnsupportedTarget: see `read_target`.
        RecipeError: captured layers that this target does not have, or a mask token that it does not or that is text.
    """
    from deepspec.targets.directory import check_mask_token, read_target

    recipe = run.recipe
    folder = Path(recipe.target.path)
    if _made_first(run, folder):
        return Pending("the recipe's inputs")

    def fingerprint() -> str:
        return run.fingerprints.files(model_files(folder), within=folder)

    def looked_at() -> External:
        spec = read_target(folder)
        mask_token_id = getattr(algorithm(run).resolve(recipe.draft, spec), "mask_token_id", None)
        if mask_token_id is not None:
            check_mask_token(spec, mask_token_id)
        return External("target", fingerprint(), str(folder), fingerprint)

    return run.once("target", looked_at)


def source_of(run: "Run[Recipe]") -> External | Pending:
    """The conversations' files (or the data set's commit), by content and order, and in a mixture by source."""
    from deepspec.data.sources.finding import find_sources

    recipe = run.recipe
    paths = [entry.path for entry in recipe.data.source]
    if any(_made_first(run, Path(path)) for path in paths):
        return Pending("the recipe's inputs")
    plain = left_out_of_key(recipe, "data.source")

    def fingerprint() -> str:
        found = find_sources(paths)
        if plain:  # which source a file belongs to changes nothing
            return digest_of([_content_of(run, item) for item in found])
        return digest_of(
            [[_content_of(run, item) for item in found if item.entry == entry] for entry in range(len(paths))]
        )

    return _external(run, "source", ", ".join(paths), fingerprint)


def _made_first(run: "Run[Recipe]", path: Path) -> bool:
    """Whether something is not there yet because the recipe's own inputs, in the home folder, are made first."""
    return run.previewing and bool(run.recipe.inputs) and path.is_relative_to(run.home) and not path.exists()


def _external(run: "Run[Recipe]", name: str, location: str, fingerprint: Callable[[], str]) -> External:
    """An external input, whose content is looked at once in a run."""
    return run.once(name, lambda: External(name, fingerprint(), location, fingerprint))


def _content_of(run: "Run[Recipe]", source: "Source") -> str:
    if source.kind == "hub":
        remedy = "Check the id and the network, or download it and name its folder."
        return _commit_of(source.path, "data.source", remedy)
    path = Path(source.path)
    files = sorted(item for item in path.rglob("*") if item.is_file()) if source.kind == "folder" else [path]
    # Names do not count: a file that is moved or renamed is the same input.
    return run.fingerprints.files(files)


def _commit_of(dataset: str, where: str, remedy: str) -> str:
    """The commit that a data set id stands for now."""
    from deepspec.data.sources.hub import commit_of

    try:
        return commit_of(dataset)
    except OSError as error:
        raise DataError(
            "This data set cannot be looked up on the hub.", where=f"{where} {dataset}", remedy=remedy
        ) from error


class _NotLookedUp(DataError):
    """A benchmark's data set that could not be looked up on the hub."""


def benchmarks_of(run: "Run[Recipe]") -> External | Pending:
    """The benchmarks' files (or data sets' commits), by content, and whose rows they have.

    Raises:
        DataError: one is not there, or is looked up on the hub and cannot be. In a dry run the latter only leaves the
            stages after it open, for nothing is made from it.
    """
    recipe = run.recipe
    benchmarks = recipe.evaluate.benchmarks
    if any(_made_first(run, Path(item.path)) for item in benchmarks.values()):
        return Pending("the recipe's inputs")
    # What of each file is held out from training; how many of those are decoded is the evaluation's own affair.
    held_out = {
        name: [item.share, recipe.evaluate.seed, *([item.rows] if item.rows else [])]
        for name, item in benchmarks.items()
    }
    location = ", ".join(item.path for item in benchmarks.values())
    try:
        return _external(
            run,
            "benchmarks",
            location,
            lambda: digest_of([{name: _benchmark(run, name, item) for name, item in benchmarks.items()}, held_out]),
        )
    except _NotLookedUp as error:
        if not run.dry:
            raise
        logger.warning("%s", error)
        return Pending(f"{error.where} is looked up")


def _benchmark(run: "Run[Recipe]", name: str, benchmark: "Benchmark") -> str:
    """What a benchmark contains: the same for the same file, wherever it lies and however it is named."""
    from deepspec.evaluation.prompts.files import find_benchmark

    found = find_benchmark(name, benchmark.path, benchmark.known(name))
    if len(found) == 1 and found[0].kind in ("jsonl", "parquet"):
        return run.fingerprints.file(Path(found[0].path))
    return digest_of([_benchmark_part(run, name, source) for source in found])


def _benchmark_part(run: "Run[Recipe]", name: str, source: "Source") -> list[Any]:
    if source.kind != "hub":
        return [_content_of(run, source)]
    from deepspec.data.sources.hub import HubPart

    field = f"evaluate.benchmarks.{name}"
    part = source.part or HubPart()
    try:
        commit = _commit_of(
            source.path,
            field,
            f"Check the network; or name a folder with {name}.jsonl or {name}.parquet in {VARIABLE}, set {field} to a"
            " file, or leave the benchmark out (--set evaluate.benchmarks={} for all).",
        )
    except DataError as error:
        raise _NotLookedUp(error.what, where=error.where, remedy=error.remedy) from error
    return [commit, part.config, part.split, part.files]


def layer_ids(run: "Run[Recipe]") -> Value | Pending:
    """The target layers whose outputs the draft reads: what the states depend on of the whole draft section."""
    from deepspec.targets.directory import read_spec

    recipe = run.recipe
    if _made_first(run, Path(recipe.target.path)):
        return Pending("the recipe's inputs")
    return Value(list(algorithm(run).layer_ids(recipe.draft, read_spec(recipe.target.path))))


def captured_files(run: "Run[Recipe]") -> dict[str, Reference]:
    """The states that an engine has captured, as the input `captured` of the stage; nothing where the target is run.

    Raises:
        DataError: there are none.
    """
    wanted = run.recipe.states.captured
    if wanted is None:
        return {}
    if not any(Path(wanted).rglob("*.safetensors")):
        raise DataError(
            "there are no captured files (*.safetensors).",
            where=f"states.captured {wanted}",
            remedy="Name the folder that the engine writes hidden states to.",
        )
    # Neither names nor order count: a file's content says which document it is of.
    return {"captured": _external(run, "captured", wanted, lambda: digest_of(sorted(_fingerprints(run, Path(wanted)))))}


def _fingerprints(run: "Run[Recipe]", folder: Path) -> list[str]:
    return [run.fingerprints.file(path) for path in sorted(folder.rglob("*.safetensors"))]


def live_states(run: "Run[Recipe]", tokens: Reference) -> Value | None:
    """What training without captured states depends on, or None where they are to be captured first.

    `auto` is resolved here, before any key is made: captured if they fit into `states.max_bytes`.
    """
    from deepspec.planning.estimate import states_bytes

    settings = run.recipe.states
    mode = "offline" if settings.captured is not None else settings.mode
    if mode == "auto":
        if not isinstance(tokens, Artifact):
            return None
        train = tokens.manifest.counts["splits"]["train"]
        size = states_bytes(run.recipe, int(train["tokens"]), int(train["supervised_tokens"]))
        mode = "offline" if size <= settings.max_bytes else "online"
    if mode == "offline":
        return None
    # As keys call them: it is a part of one.
    return Value({"shard_tokens": settings.shard_tokens, "block_tokens": settings.row_group_tokens})


def published_draft(run: "Run[Recipe]", directory: Path) -> External:
    """A draft's directory in a layout that others publish in, by the content of the files that count.

    Raises:
        IncompatibleDraft: see `public_files`.
    """
    from deepspec.drafts.files.public_files import public_files

    def fingerprint() -> str:
        return run.fingerprints.files(public_files(directory).paths, within=directory)

    return _external(run, "source of the draft", str(directory), fingerprint)


def algorithm(run: "Run[Recipe]") -> Algorithm:
    """The draft's algorithm, from the table."""
    return ALGORITHMS[run.recipe.draft.algorithm]
