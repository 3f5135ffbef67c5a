"""What a draft's recipe leaves open and its target answers: the layers to read and the mask token. No torch here."""

from deepspec.errors import RecipeError
from deepspec.targets import family_of
from deepspec.targets.family import TargetSpec, check_layer_ids, default_layer_ids


def chosen_layer_ids(layer_ids: tuple[int, ...] | None, spec: TargetSpec) -> tuple[int, ...]:
    """The layers named in the recipe, or the target's usual ones.

    Raises:
        RecipeError: an id the target has not, or its last layer.
    """
    if layer_ids is None:
        layer_ids = default_layer_ids(family_of(spec), spec.num_layers)
    return check_layer_ids(spec, layer_ids)


def chosen_mask_token(mask_token_id: int | None, spec: TargetSpec) -> int:
    """The mask token named in the recipe, or the family's.

    Raises:
        RecipeError: it is no id of the target's vocabulary.
    """
    token = family_of(spec).mask_token_id if mask_token_id is None else mask_token_id
    if token < spec.vocab_size:
        return token
    origin = "the family's usual mask token" if mask_token_id is None else "the mask token"
    raise RecipeError(
        f"{origin} {token} is not in the target's vocabulary of {spec.vocab_size}.",
        where="draft.mask_token_id",
        remedy="Name an id that the tokenizer does not use.",
    )
