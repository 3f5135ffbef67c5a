"""Fields of a foreign config.json: looked up, compared, and refused by name where no draft here is like that.

A field that is passed over costs acceptance and nothing else: what may change what a draft computes is either known or
refused. Sources: spec pages "Engines" and "Serving", sections 1 and 2.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from deepspec.errors import IncompatibleDraft
from deepspec.targets import FAMILIES

Allowed: TypeAlias = Mapping[str, tuple[tuple[Any, ...], str]]
"""Field -> its values in drafts that run here (None: it may be missing), and what these drafts are."""

OTHER_DRAFT = "Serve this draft as it is, or take over one that deepspec runs: `deepspec export --matrix` lists them."
SLOTS, BONUS = "sample_from_anchor", "dspark_bonus_anchor"
"""Which token a block's positions predict: two names, of which one says the opposite of the other."""

BODY: Allowed = MappingProxyType(
    {
        "is_causal": ((None, False), "the positions of a block see each other"),
        "mlp_bias": ((None, False), "projections have no bias"),
        "logit_scale": ((None, 1), "logits are not scaled"),
        "output_multiplier": ((None, 1), "logits are not scaled"),
        "input_embedding_scale": ((None, 1), "embeddings are scaled as the target's are"),
        "is_neox_style": ((None, True), "positions turn the two halves of a head"),
        "add_swa_attention_sink_bias": ((None, False), "attention has no sink"),
    }
)
"""Of a draft's body in every layout."""

EAGLE3: Allowed = MappingProxyType(
    {
        "norm_before_residual": ((None, False), "the residual is taken before the norm"),
        "norm_before_fc": ((None, False), "the target's states are not normalised"),
        "fc_norm": ((None, False), "the target's states are not normalised"),
        "norm_output": ((None, False), "the output that enters the next step is not normalised"),
        "parallel_drafting": ((None, False), "tokens are drafted one after the other"),
        "pard_token": ((None,), "tokens are drafted one after the other"),
        "eagle_config.norm_before_fc": ((None, False), "the target's states are not normalised"),
        "eagle_config.use_aux_hidden_state": ((None, True), "several layers of the target are read"),
    }
)
"""Of an Eagle3 draft."""

ONE_LAYER: Allowed = MappingProxyType(
    {"num_hidden_layers": ((1,), "every layer reads the embedding, so that only 1 layer is the same for all readers")}
)
"""Of an Eagle3 draft where only the first layer reads the embedding."""


def at(written: Mapping[str, Any], field: str) -> Any:
    """The value of a field, of a nested one with a dot; None if it is missing."""
    value: Any = written
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def refused(field: str, value: object, here: str, where: str) -> IncompatibleDraft:
    """The error for a field that says what no draft here is."""
    text = repr(value)
    text = text if len(text) <= 100 else f"{text[:100]}…"
    return IncompatibleDraft(
        f"field {field} is {text}; of drafts that run here, {here}.", where=where, remedy=OTHER_DRAFT
    )


def refuse_others(written: Mapping[str, Any], allowed: Allowed, where: str, within: str = "") -> None:
    """Refuse fields with values that no draft here has.

    Args:
        written: config.json, or a part of it.
        allowed: what is checked.
        where: config.json, for messages.
        within: the field that `written` is, with a dot.

    Raises:
        IncompatibleDraft: names the first such field.
    """
    for field, (values, here) in allowed.items():
        value = at(written, field)
        if value not in values:
            raise refused(f"{within}{field}", value, here, where)


def refuse_unknown(written: Mapping[str, Any], known: Iterable[str], where: str, within: str) -> None:
    """Refuse a part of config.json that has a field of unknown meaning.

    Raises:
        IncompatibleDraft: names it.
    """
    for name in sorted(name for name, value in written.items() if value is not None and name not in set(known)):
        raise refused(f"{within}{name}", written[name], "none has it, and it may change what a draft computes", where)


def refuse_sizes(written: Mapping[str, Any], body: Mapping[str, Any], where: str) -> None:
    """Refuse a draft whose vocabulary or target's width is not its body's.

    Args:
        written: config.json.
        body: the part of it that describes the body.
        where: config.json, for messages.

    Raises:
        IncompatibleDraft: names the field.
    """
    for field, size, here in (
        ("draft_vocab_size", "vocab_size", "the vocabulary is the target's, not a reduced one"),
        ("target_hidden_size", "hidden_size", "the hidden size is the target's"),
    ):
        if written.get(field) not in (None, body.get(size)):
            raise refused(field, written[field], f"{here}: {size} is {body.get(size)!r}", where)


def layer_ids(written: Mapping[str, Any], spellings: Mapping[str, int], where: str) -> list[int] | None:
    """The target's layers that a draft reads, by whose output it is; None where config.json does not say it.

    Args:
        written: config.json.
        spellings: field -> what it counts more than we do.
        where: config.json, for messages.

    Raises:
        IncompatibleDraft: a field is no list of numbers, or two say different layers.
    """
    found: dict[str, list[int]] = {}
    for field, more in spellings.items():
        value = at(written, field)
        if value is None:
            continue
        if not isinstance(value, list) or any(type(one) is not int for one in value):
            raise refused(field, value, "it is a list of numbers", where)
        found[field] = [one - more for one in value]
    for field, ids in list(found.items())[1:]:
        first, others = next(iter(found.items()))
        if ids != others:
            raise refused(
                field, at(written, field), f"it says the layers that {first} says, {at(written, first)}", where
            )
    return next(iter(found.values()), None)


def from_anchor(written: Mapping[str, Any], where: str, *, otherwise: bool) -> bool:
    """Whether the positions of a block predict the token after them, the anchor's too.

    Args:
        written: config.json.
        where: config.json, for messages.
        otherwise: what it means where neither name is there.

    Raises:
        IncompatibleDraft: a value is neither true nor false, or the two names contradict each other.
    """
    for field in (SLOTS, BONUS):
        if not isinstance(written.get(field), bool | None):
            raise refused(field, written[field], "it is true or false", where)
    slots, bonus = written.get(SLOTS), written.get(BONUS)
    if slots is not None and slots == bonus:
        raise refused(BONUS, bonus, f"it says the opposite of {SLOTS}, which is {slots}", where)
    if slots is None:
        slots = otherwise if bonus is None else not bonus
    return bool(slots)


def merged(written: Mapping[str, Any], within: str, names: Iterable[str], where: str) -> dict[str, Any]:
    """config.json with fields of a nested part at the top level.

    Args:
        written: config.json.
        within: the field that is the part.
        names: the part's fields that are wanted.
        where: config.json, for messages.

    Raises:
        IncompatibleDraft: a field is in both places, with two values.
    """
    said = {name: value for name, value in written.items() if value is not None}
    for name in names:
        value = at(written, f"{within}.{name}")
        if value is not None and said.setdefault(name, value) != value:
            raise refused(f"{within}.{name}", value, f"it is what {name} is, {said[name]!r}", where)
    return said


def architecture(written: Mapping[str, Any], network: str) -> list[str]:
    """What our config.json calls a network with such a body; a family that is unknown is refused later."""
    prefixes = (item.draft_prefix for item in FAMILIES.values() if written.get("model_type") in item.model_types)
    return [next(prefixes, "") + network]
