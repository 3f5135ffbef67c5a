"""Loads a target's tokenizer from its directory and says which one it is.

Only `tokenizer.json` is used (character offsets are needed), never code that came with a model. Not here: markers
(formats.py) and masks (supervision.py).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.data.chat.tokenizer_files import TOKENIZER_FILE, VERBATIM_CLASSES, TokenizerFiles, id_rules, merges_of
from deepspec.errors import UnsupportedTarget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(path: Path | str) -> "PreTrainedTokenizerFast":
    """Load the tokenizer of a target directory, local files only.

    Args:
        path: directory that holds `tokenizer.json` and a chat template (`chat_template.jinja`, or the field
            `chat_template` of `tokenizer_config.json`).

    Returns:
        A fast tokenizer with a chat template.

    Raises:
        UnsupportedTarget: no such directory, files that `TokenizerFiles` refuses, a chat template that it refuses, or a
            tokenizer that makes other ids than `tokenizer.json`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UnsupportedTarget(
            "is not a directory.", where=str(folder), remedy="Point target.path at a model directory."
        )
    files = TokenizerFiles.read(folder)
    files.check_templates()
    tokenizer = _auto_tokenizer(folder)
    if not tokenizer.is_fast:
        raise UnsupportedTarget(
            f"loads as {type(tokenizer).__name__}, which gives no character offsets.",
            where=str(folder),
            remedy="Save it as a fast tokenizer.",
        )
    check_chat_template(tokenizer, where=str(folder))
    _check_ids(tokenizer, files)
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
    files = TokenizerFiles.read(folder)
    return TokenizerIdentity(_sha256(dict(files.ids)), len(files.ids), _sha256(files.template))


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


def _check_ids(tokenizer: "PreTrainedTokenizerFast", files: TokenizerFiles) -> None:
    """Whether the loaded tokenizer is the file's: transformers rebuilds some by their class, and adds tokens to others.

    Raises:
        UnsupportedTarget: it would make other ids of some text.
    """
    name, different = type(tokenizer).__name__, ""
    loaded = tokenizer.get_vocab()
    if loaded != files.ids:
        tokens = sorted(token for token in {*loaded, *files.ids} if loaded.get(token) != files.ids.get(token))
        different = f"{len(tokens)} other tokens or ids, {tokens[0]!r} among them"
    elif name not in VERBATIM_CLASSES:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        parts = [part for part, wanted in id_rules(files.content).items() if id_rules(rules)[part] != wanted]
        if merges_of(rules) != merges_of(files.content):
            parts.append("list of merges")
        different = f"another {parts[0]}" if parts else ""
    if different:
        raise UnsupportedTarget(
            f"loads as {name} with {different} than tokenizer.json has: a text would have other token ids.",
            where=str(files.folder),
            remedy='Set "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json, or copy the model\'s own'
            " files again.",
        )
