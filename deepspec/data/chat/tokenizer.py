"""Loads a target's tokenizer from its directory and says which one it is.

Only `tokenizer.json` is used (character offsets are needed), never code that came with a model. Not here: markers
(formats.py) and masks (renderer.py).
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import UnsupportedTarget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"


def load_tokenizer(path: Path | str) -> "PreTrainedTokenizerFast":
    """Load the tokenizer of a target directory, local files only.

    Args:
        path: directory that holds `tokenizer.json` and a chat template (`chat_template.jinja`, or the field
            `chat_template` of `tokenizer_config.json`).

    Returns:
        A fast tokenizer with a chat template.

    Raises:
        UnsupportedTarget: no such directory, no or damaged `tokenizer.json`, or no chat template.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UnsupportedTarget(
            "is not a directory.", where=str(folder), remedy="Point target.path at a model directory."
        )
    _check_json(folder / TOKENIZER_FILE, required=True)
    _check_json(folder / SETTINGS_FILE, required=False)
    tokenizer = _auto_tokenizer(folder)
    if not tokenizer.is_fast:
        raise UnsupportedTarget(
            f"loads as {type(tokenizer).__name__}, which gives no character offsets.",
            where=str(folder),
            remedy="Save it as a fast tokenizer.",
        )
    check_chat_template(tokenizer, where=str(folder))
    return tokenizer


def check_chat_template(tokenizer: "PreTrainedTokenizerFast", *, where: str | None = None) -> None:
    """Refuse a tokenizer that cannot render a conversation.

    Raises:
        UnsupportedTarget: it has no chat template, or several and none called "default".
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template.strip():
        raise UnsupportedTarget(
            "the tokenizer has no chat template.",
            where=where or str(tokenizer.name_or_path) or None,
            remedy="Put the target's chat_template.jinja next to tokenizer.json.",
        )


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """SHA-256 over what decides a conversation's token ids: vocabulary, rules, special tokens and chat template.

    What a loaded tokenizer merely remembers (padding and truncation of the last call, its location) does not count.
    """
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("padding", None)
    rules.pop("truncation", None)
    identity = {
        "rules": rules,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template,
    }
    return _sha256(identity)


@dataclass(frozen=True, slots=True)
class TokenizerIdentity:
    """What a draft remembers of the tokenizer that it was trained with.

    Attributes:
        vocabulary: SHA-256 over which token has which id.
        num_tokens: how many there are.
        chat_template: SHA-256 over the template's text.
    """

    vocabulary: str
    num_tokens: int
    chat_template: str


def tokenizer_identity(folder: Path) -> TokenizerIdentity | None:
    """The identity of a target's tokenizer, from its files alone; None if it has none.

    Read without the tokenizer's library: the same tokens written by another version of it are the same tokens.

    Raises:
        UnsupportedTarget: a damaged file.
    """
    if not (folder / TOKENIZER_FILE).is_file():
        return None
    _check_json(folder / TOKENIZER_FILE, required=True)
    _check_json(folder / SETTINGS_FILE, required=False)
    content = json.loads((folder / TOKENIZER_FILE).read_bytes())
    known = content["model"].get("vocab") or {}
    ids = dict(known) if isinstance(known, dict) else {item[0]: number for number, item in enumerate(known)}
    ids |= {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    if (folder / TEMPLATE_FILE).is_file():
        template: Any = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    else:
        settings = folder / SETTINGS_FILE
        template = json.loads(settings.read_bytes()).get("chat_template") if settings.is_file() else None
    return TokenizerIdentity(_sha256(ids), len(ids), _sha256(template))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _auto_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UnsupportedTarget(
            f"the tokenizer cannot be loaded: {error}", where=str(folder), remedy="Check the tokenizer's files."
        ) from error


def _check_json(file: Path, *, required: bool) -> None:
    """Find a missing or damaged file first: `tokenizers` tells of it with a bare Exception, or builds an empty one."""
    if not file.is_file():
        if not required:
            return
        raise UnsupportedTarget(
            f"there is no {file.name}.",
            where=str(file.parent),
            remedy="Save the target's fast tokenizer there (`tokenizer.save_pretrained(directory)`).",
        )
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsupportedTarget(
            f"is not valid JSON ({error}).", where=str(file), remedy="Copy the file again."
        ) from error
    if not isinstance(content, dict) or (required and "model" not in content):
        raise UnsupportedTarget("is not a tokenizer file.", where=str(file), remedy="Copy the file again.")
