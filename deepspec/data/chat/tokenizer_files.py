"""What a target's directory says of its tokenizer, read from the files alone: ids, loading class, chat templates.

Without the tokenizer's library, so that a run knows before its first stage what loading would find out. Token ids are
those of `tokenizer.json`: a directory whose other files make other ids of the same text is refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deepspec.errors import UnsupportedTarget
from deepspec.foreign_json import COPY_AGAIN, read_object

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATES_FOLDER = "additional_chat_templates"
VERBATIM_CLASSES = frozenset({"TokenizersBackend", "PreTrainedTokenizer", "PreTrainedTokenizerFast"})
"""Classes that transformers loads `tokenizer.json` with as it stands."""
_BYTE_LEVEL = MappingProxyType({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
_QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MODEL_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
)
REBUILT: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Qwen2Tokenizer": MappingProxyType(
            {
                "normalizer": {"type": "NFC"},
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {
                            "type": "Split",
                            "pattern": {"Regex": _QWEN_PIECES},
                            "behavior": "Isolated",
                            "invert": False,
                        },
                        dict(_BYTE_LEVEL),
                    ],
                },
                "model": dict(_MODEL_DEFAULTS),
            }
        ),
        "GemmaTokenizer": MappingProxyType(
            {
                "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"String": " "},
                    "behavior": "MergedWithPrevious",
                    "invert": False,
                },
                "model": {**_MODEL_DEFAULTS, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
            }
        ),
    }
)
"""What these classes build of a vocabulary and merges, whatever else `tokenizer.json` says (transformers 5.23)."""
REBUILT_TOKENS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
        "GemmaTokenizer": {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")},
    }
)
"""Special tokens that they add where the settings do not name others."""
_TOKEN_FIELDS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CHANGING_NAMES = frozenset({"strftime_now", "lipsum"})


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer's files, parsed and checked; made by `read`.

    Attributes:
        folder: where they lie.
        content: of tokenizer.json.
        settings: of tokenizer_config.json; empty where there is none.
        ids: token -> id, added tokens included.
        added: of these, the added ones.
        special: of these, the special ones.
        templates: name -> chat template; what transformers would take.
        template: the same as one value: a text where there is one template, or the value of the settings.
    """

    folder: Path
    content: Mapping[str, Any]
    settings: Mapping[str, Any]
    ids: Mapping[str, int]
    added: Mapping[str, int]
    special: frozenset[str]
    templates: Mapping[str, str]
    template: Any

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFiles":
        """Read the files of a directory.

        Raises:
            UnsupportedTarget: no or a damaged `tokenizer.json`, damaged settings or templates, two tokens with one id,
                or tokens in the settings that `tokenizer.json` has not, or under other ids.
        """
        file = folder / TOKENIZER_FILE
        if not file.is_file():
            raise UnsupportedTarget(
                f"there is no {TOKENIZER_FILE}.",
                where=str(folder),
                remedy="Save the target's fast tokenizer there (`tokenizer.save_pretrained(directory)`).",
            )
        content = read_object(file, large=True)
        settings = read_object(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).exists() else {}
        try:
            known = content["model"].get("vocab") or {}
            ids = dict(known) if isinstance(known, dict) else {item[0]: number for number, item in enumerate(known)}
            entries = list(content.get("added_tokens") or ())
            added = {str(entry["content"]): entry["id"] for entry in entries}
            special = frozenset(str(entry["content"]) for entry in entries if entry.get("special"))
            ids |= added
            if not all(type(number) is int and number >= 0 for number in ids.values()):
                raise TypeError("an id is no whole number")
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise UnsupportedTarget(
                "is not a tokenizer file.", where=str(file), remedy="Copy the file again."
            ) from error
        if len(set(ids.values())) < len(ids):
            by_id: dict[int, str] = {}
            first, second = next(
                (other, token) for token, number in ids.items() if (other := by_id.setdefault(number, token)) != token
            )
            raise UnsupportedTarget(
                f"tokens {first!r} and {second!r} have the same id {ids[first]}.", where=str(file), remedy=COPY_AGAIN
            )
        templates, template = _templates(folder, settings)
        found = cls(folder, content, settings, ids, added, special, templates, template)
        found._check_named_tokens()
        return found

    def check_class(self, default: str) -> None:
        """Refuse a class that would make other ids of a text than `tokenizer.json` does.

        Args:
            default: the class that is taken where the settings name none.

        Raises:
            UnsupportedTarget: it would, or nothing is known of it.
        """
        named = self.settings.get("tokenizer_class")
        name = str(named or default).removesuffix("Fast")
        if name in VERBATIM_CLASSES:
            return
        where = str(self.folder / SETTINGS_FILE)
        origin = f"field tokenizer_class is {named!r}" if named else f"no field tokenizer_class, which means {name}"
        remedy = 'Set it to "PreTrainedTokenizerFast": tokenizer.json as it stands.'
        built = REBUILT.get(name)
        if built is None:
            raise UnsupportedTarget(
                f"{origin}: what that class makes of tokenizer.json is not known.",
                where=where,
                remedy=remedy,
            )
        rules = id_rules(self.content)
        different = [part for part in built if built[part] != rules[part]]
        usual = REBUILT_TOKENS[name].items()
        missing = [token for field, token in usual if field not in self.settings and token not in self.ids]
        if different or missing:
            what = f"another {different[0]}" if different else f"another token {missing[0]!r}"
            raise UnsupportedTarget(
                f"{origin}: that class rebuilds the tokenizer with {what}, and a text has other token ids.",
                where=where,
                remedy=remedy,
            )

    def check_templates(self) -> None:
        """Refuse chat templates that cannot render a conversation, or render it otherwise another day.

        Raises:
            UnsupportedTarget: there is none, or none called "default"; or one asks for the date or for chance.
        """
        if not self.templates.get("default", "").strip():
            raise UnsupportedTarget(
                "the tokenizer has no chat template.",
                where=str(self.folder),
                remedy="Put the target's chat_template.jinja next to tokenizer.json.",
            )
        for name, text in self.templates.items():
            asked = next(_changing(text), None)
            if asked is not None:
                raise UnsupportedTarget(
                    f"the chat template {name!r} asks for {asked}: a conversation would have other tokens another day.",
                    where=str(self.folder),
                    remedy="Write a fixed value in its place, for training and for serving.",
                )

    def _check_named_tokens(self) -> None:
        where = str(self.folder / SETTINGS_FILE)
        remedy = "tokenizer.json and tokenizer_config.json are of two tokenizers: copy the directory again, all of it."
        for field, token, number in _named_tokens(self.settings, where):
            if token not in self.ids:
                raise UnsupportedTarget(
                    f"field {field} names {token!r}, which tokenizer.json does not have.", where=where, remedy=remedy
                )
            if number is not None and self.ids[token] != number:
                raise UnsupportedTarget(
                    f"field {field} says that {token!r} is {number}; in tokenizer.json it is {self.ids[token]}.",
                    where=where,
                    remedy=remedy,
                )


def id_rules(content: Mapping[str, Any]) -> dict[str, Any]:
    """What of a tokenizer.json decides a text's ids, besides vocabulary and merges, in one spelling."""
    model = {name: content["model"].get(name) for name in _MODEL_DEFAULTS}
    model = {name: _MODEL_DEFAULTS[name] if value is None else value for name, value in model.items()}
    return {
        "normalizer": content.get("normalizer"),
        "pre_tokenizer": _without_offsets(content.get("pre_tokenizer")),
        "model": model,
    }


def merges_of(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The merges of a tokenizer.json, in one spelling."""
    merges = content["model"].get("merges") or ()
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]


def _without_offsets(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _without_offsets(value) for name, value in part.items() if name != "trim_offsets"}
    return [_without_offsets(value) for value in part] if isinstance(part, list) else part


def _named_tokens(settings: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, int | None]]:
    """Field, token and, where it says one, id of every token that the settings name."""
    try:
        for name in _TOKEN_FIELDS:
            if settings.get(name) is not None:
                yield name, _text(settings[name]), None
        for name in ("additional_special_tokens", "extra_special_tokens"):
            tokens = settings.get(name) or ()
            for token in tokens.values() if isinstance(tokens, dict) else tokens:
                yield name, _text(token), None
        for number, token in (settings.get("added_tokens_decoder") or {}).items():
            yield f"added_tokens_decoder.{number}", _text(token), int(number)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UnsupportedTarget(
            f"a field that names tokens is of another form than transformers writes ({error}).",
            where=where,
            remedy=COPY_AGAIN,
        ) from error


def _text(token: Any) -> str:
    text = token["content"] if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no text")
    return text


def _templates(folder: Path, settings: Mapping[str, Any]) -> tuple[dict[str, str], Any]:
    """Name -> template, as transformers finds them (the settings count only without files); and all as one value."""
    found = {}
    if (folder / TEMPLATE_FILE).is_file():
        found["default"] = _template(folder / TEMPLATE_FILE)
    for file in sorted((folder / TEMPLATES_FOLDER).glob("*.jinja")):
        found[file.stem] = _template(file)
    if found:
        return found, found["default"] if list(found) == ["default"] else found
    match settings.get("chat_template"):
        case None:
            return {}, None
        case str(text):
            return {"default": text}, text
        case [*entries] if all(
            isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
            for entry in entries
        ):
            return {entry["name"]: entry["template"] for entry in entries}, entries
        case other:
            raise UnsupportedTarget(
                f"field chat_template is {str(other)[:60]!r}, neither a text nor a list of name and template.",
                where=str(folder / SETTINGS_FILE),
                remedy=COPY_AGAIN,
            )


def _template(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnsupportedTarget(f"cannot be read: {error}.", where=str(file), remedy=COPY_AGAIN) from error


def _changing(template: str) -> Iterator[str]:
    """What a template uses that is not the same every time."""
    if not re.search(r"strftime_now|lipsum|\brandom\b", template):
        return
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        pieces = ImmutableSandboxedEnvironment().lex(template)
        tokens = [(kind, text) for _, kind, text in pieces if kind != "whitespace"]
    except TemplateSyntaxError:
        return  # told where it is rendered
    before = ""
    for kind, text in tokens:
        if kind == "name" and text in _CHANGING_NAMES:
            yield "the date (strftime_now)" if text == "strftime_now" else f"chance ({text})"
        if kind == "name" and text == "random" and before == "|":
            yield "chance (random)"
        before = text
