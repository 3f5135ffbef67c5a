"""The layout of the public DeepSpec checkpoints: bfloat16, the target's tables included, fields at the top level.

Our own draft directories have the same tensors and fields, in the dtype they were trained in; what differs is done
here. Nothing is left to a reader's default that another reader has otherwise: `write` says it all, and `check` takes
for missing what only our own reader could supply. Source: spec page "Serving", sections 1, 2.2 and 4.
"""

from pathlib import Path

import torch

from deepspec.drafts.files.config_json import CONFIG_FILE
from deepspec.errors import DeepspecError
from deepspec.export.checking import check_header, layout_flaws, tensor_flaws
from deepspec.export.described import Described, rope_fields, write_directory
from deepspec.export.format import Format
from deepspec.export.matrix import DEEPSPEC, loaded
from deepspec.export.side_files import check_side_files, file_flaws
from deepspec.targets import family_of


def write(draft: Path, out: Path, target_name: str) -> None:
    """Write a draft directory in this layout; see `Format.write`."""
    described = Described.read(draft)
    loaded(DEEPSPEC, described.spec.family, described.row, f"{draft.name}/{CONFIG_FILE}")
    config = described.algorithm.release(described.written, draft, target_name) | {"dtype": "bfloat16"}
    config |= rope_fields(config, described.spec)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in described.tensors().items()}
    write_directory(out, config, tensors, draft)


def check(directory: Path) -> list[str]:
    """What is wrong with a directory in this layout; see `Format.check`."""
    try:
        described = Described.read(directory)
        flaws = _field_flaws(described)
        flaws = flaws or layout_flaws(described.written, directory)
        flaws += check_side_files(directory, described.num_draft_tokens) + file_flaws(directory)
        check_header(described)
        with torch.device("meta"):
            expected = described.algorithm.build(described.config, described.spec).state_dict()
    except DeepspecError as error:
        return [str(error)]
    return flaws + tensor_flaws(directory, expected, torch.bfloat16)


def _field_flaws(described: Described) -> list[str]:
    """Fields that a reader without our defaults would miss, and fields that say something else than we would.

    Raises:
        IncompatibleDraft: the layout has no such drafts.
    """
    config, algorithm, family = described.written, described.algorithm, family_of(described.spec)
    num_layers = described.config.num_layers
    must = {
        **algorithm.required(described.config),
        "architectures": [family.draft_prefix + algorithm.architecture],
        "dtype": "bfloat16",
        "num_hidden_layers": num_layers,
        "layer_types": ["full_attention"] * num_layers,
        "tie_word_embeddings": False,
    }
    may = {**algorithm.release(must, described.directory, str(config.get("target_model_name_or_path"))), **must}
    body = [name for name, value in family.draft_fields(described.spec).items() if value is not None]
    missing = sorted(name for name in {*must, *body} if config.get(name) is None)
    flaws = [f"field {name} is missing: readers have no default for it, or not the same one." for name in missing]
    for name in sorted(may.keys() - set(missing)):
        if name in config and config[name] != may[name]:
            flaws.append(f"field {name} is {config[name]!r}, not {may[name]!r}.")
    return flaws


FORMAT = Format(name=DEEPSPEC, write=write, check=check)
