"""A format of an engine: our own draft directory with other words in its config.json, in the weights' own dtype.

What an engine reads is *required*, and `check` compares it; the rest of our own config.json goes along, so that the
directory can be read back. Source of the fields: spec page "Engines" and the engines' own files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepspec.drafts.files.config_json import read_draft_config
from deepspec.errors import DeepspecError
from deepspec.export.checking import check_header, field_flaws, layout_flaws, tensor_flaws
from deepspec.export.described import Described, with_zero_head, write_directory
from deepspec.export.format import Format
from deepspec.export.matrix import Cell, loaded
from deepspec.export.side_files import check_side_files, file_flaws
from deepspec.targets import family_of

_DTYPES = ("float32", "bfloat16", "float16")


def _takes_all(described: Described, where: str) -> None:
    """What an engine does that has no such limits."""


@dataclass(frozen=True)
class EngineFormat:
    """What one engine's directories differ in.

    Args:
        name: as on the command line.
        required: (draft, its cell, target's name) -> what config.json has to say besides the body's fields.
        own: (config.json of this format) -> the same in our own words.
        refuse: (draft, config.json) -> None: IncompatibleDraft for what the engine cannot do with such drafts.
        body_field: the field that the body's fields stand in; None: the top level.
    """

    name: str
    required: Callable[[Described, Cell, str], Mapping[str, Any]]
    own: Callable[[Mapping[str, Any]], dict[str, Any]]
    refuse: Callable[[Described, str], None] = _takes_all
    body_field: str | None = None

    def format(self) -> Format:
        """Its line in the table of formats."""
        return Format(name=self.name, write=self.write, check=self.check)

    def write(self, draft: Path, out: Path, target_name: str) -> None:
        """Write a draft directory in this format; see `Format.write`."""
        described = Described.read(draft)
        cell = loaded(self.name, described.spec.family, described.row, f"{draft.name}/config.json")
        self.refuse(described, f"{draft.name}/config.json")
        tensors = with_zero_head(described, described.tensors())
        write_directory(out, self._config(described, cell, target_name), tensors, draft)

    def _config(self, described: Described, cell: Cell, target_name: str) -> dict[str, Any]:
        body = described.body()
        placed = body if self.body_field is None else {self.body_field: body}
        own = {name: value for name, value in described.written.items() if self.body_field is None or name not in body}
        own.pop("architectures", None)
        return {**own, **placed, **self.required(described, cell, target_name)}

    def check(self, directory: Path) -> list[str]:
        """What is wrong with a directory in this format; see `Format.check`."""
        try:
            written = read_draft_config(directory)
            described = Described.read(directory, self.own(written))
            cell = loaded(self.name, described.spec.family, described.row, f"{directory.name}/config.json")
            self.refuse(described, f"{directory.name}/config.json")
            body = written if self.body_field is None else written.get(self.body_field)
            check_header(described)
            with torch.device("meta"):
                expected = described.algorithm.build(described.config, described.spec).state_dict()
        except DeepspecError as error:
            return [str(error)]
        within = "" if self.body_field is None else f"{self.body_field}."
        said = body if isinstance(body, Mapping) else {}
        missing = [name for name in family_of(described.spec).body_fields if said.get(name) is None]
        flaws = [
            f"field {within}{name} is missing: readers have no default for it, or not the same one." for name in missing
        ]
        must = {name: value for name, value in described.body().items() if name not in missing}
        flaws += field_flaws(said, must, within)
        flaws += field_flaws(written, self.required(described, cell, str(_target_in(written))))
        flaws = flaws or layout_flaws(written, directory)
        flaws += check_side_files(directory, described.num_draft_tokens) + file_flaws(directory)
        dtype = written.get("dtype")
        if dtype not in _DTYPES:
            flaws.append(f"field dtype is {dtype!r}, not one of {', '.join(_DTYPES)}.")
        return flaws + tensor_flaws(directory, expected, getattr(torch, dtype) if dtype in _DTYPES else None)


def _target_in(written: Mapping[str, Any]) -> object:
    verifier = written.get("speculators_config")
    named = verifier.get("verifier") if isinstance(verifier, Mapping) else None
    return named.get("name_or_path") if isinstance(named, Mapping) else ""
