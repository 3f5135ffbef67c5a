"""Lineage as a picture: from conversations to the version, in a row for wide windows and a column for narrow ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from deepspec.reports.dashboard.feed import Ancestor
from deepspec.reports.formatting import number
from deepspec.units import in_units

_CHAIN = ("conversations", "responses", "tokens", "states", "draft", "evaluate", "register")
_DRAFTS = ("train", "import")
_ASIDE = {"source": "conversations", "target": "responses", "calibrate": "evaluate", "earlier": "draft"}
"""What stands next to the chain, and the link that it belongs to."""
_WORDS = {
    "train": "draft",
    "import": "imported draft",
    "evaluate": "evaluation",
    "calibrate": "calibration",
    "register": "version",
    "earlier": "earlier draft",
}
_COUNTED = {
    "conversations": "conversations",
    "responses": "answers",
    "tokens": "tokens",
    "states": "bytes",
    "draft": "steps",
    "evaluate": "rounds",
}
_BOX = (136.0, 66.0)
_GAP = 26.0
_ROW_GAP = 34.0
_COLUMN = (168.0, 62.0)
_COLUMN_GAP = 24.0
_SIDE_X = 192.0
_SIDE = 146.0


@dataclass(frozen=True)
class Box:
    """An artifact in the picture.

    Attributes:
        x, y, width, height: in the picture's own units.
        kind: its place in the chain, for its colour.
        word, key, fact: what stands in it.
    """

    x: float
    y: float
    width: float
    height: float
    kind: str
    word: str
    key: str
    fact: str


@dataclass(frozen=True)
class Picture:
    """One arrangement: boxes, and arrows as paths."""

    width: float
    height: float
    boxes: Sequence[Box]
    arrows: Sequence[str]


@dataclass(frozen=True)
class Row:
    """An artifact in the list under the picture."""

    word: str
    key: str
    made: str
    facts: str
    absent: bool


@dataclass(frozen=True)
class LineagePicture:
    """Both arrangements, and the same in words."""

    wide: Picture
    narrow: Picture
    summary: str
    rows: Sequence[Row]


def picture_of(lineage: Sequence[Ancestor], version: str) -> LineagePicture | None:
    """The picture of a champion's lineage; None where nothing of it is known.

    Args:
        lineage: as the feed has it.
        version: what the last box says.
    """
    found = _chosen(lineage)
    chain = [link for link in _CHAIN if link in found]
    if not chain:
        return None
    aside = {name: link for name, link in _ASIDE.items() if name in found and link in chain}
    texts = {link: _texts(link, item, version) for link, item in found.items()}
    return LineagePicture(
        wide=_wide(chain, aside, texts),
        narrow=_narrow(chain, aside, texts),
        summary=" → ".join(f"{texts[link][0]} {texts[link][1]}" for link in chain),
        rows=[_row(item) for item in lineage],
    )


def _chosen(lineage: Sequence[Ancestor]) -> dict[str, Ancestor]:
    """The artifact of each place in the picture: the nearest of its kind."""
    found: dict[str, Ancestor] = {}
    for item in lineage:
        place = "draft" if item.kind in _DRAFTS else item.kind
        if place == "draft" and "draft" in found:
            place = "earlier"
        if place in _CHAIN or place in _ASIDE:
            found.setdefault(place, item)
    return found


def _texts(place: str, item: Ancestor, version: str) -> tuple[str, str, str]:
    """Word, shortened key and a fact."""
    word = _WORDS.get(place if place == "earlier" else item.kind, item.kind)
    fact = version if place == "register" else _fact(item, _COUNTED.get(place, ""))
    return word, item.key[:10], fact or ("" if item.in_store else "not in this store")


def _fact(item: Ancestor, name: str) -> str:
    value = item.counts.get(name)
    if value is None:
        return ""
    return in_units(value) if name == "bytes" else f"{short(value)} {name}"


def short(value: float) -> str:
    """A count in three figures, as in 31.0 M."""
    for unit in ("", "k", "M", "G"):
        if abs(value) < 1000 or unit == "G":
            return f"{value:.0f}" if not unit else f"{value:.3g}\N{NO-BREAK SPACE}{unit}"
        value /= 1000
    raise AssertionError


def _wide(chain: Sequence[str], aside: Mapping[str, str], texts: Mapping[str, tuple[str, str, str]]) -> Picture:
    width, height = _BOX
    x = {link: place * (width + _GAP) for place, link in enumerate(chain)}
    boxes = [Box(x[link], 0, width, height, link, *texts[link]) for link in chain]
    middle = height / 2
    arrows = [f"M{x[before] + width} {middle}H{x[after] - 2}" for before, after in pairwise(chain)]
    below = height + _ROW_GAP
    for name, link in aside.items():
        end = x[link] + width
        used = [x[one] + width / 2 for one in ("responses", "tokens", "states") if one in x]
        if name == "target":  # it is needed for all of these
            end = max(used) + width / 2
            arrows += [f"M{place} {below}V{height + 2}" for place in used]
        elif name == "calibrate" and "draft" in x:
            arrows.append(f"M{x[link] + width / 2} {below}V{height + 2}")
            corner = x["draft"] + width * 0.75
            arrows.append(f"M{corner} {height}V{below + middle}H{x[link] - 2}")
        else:
            arrows.append(f"M{x[link] + width / 2} {below}V{height + 2}")
        left = x[link]
        if name == "earlier":  # the way from the draft to its calibration passes on the right
            end -= width * 0.35
            arrows[-1] = f"M{x[link] + width * 0.3} {below}V{height + 2}"
        boxes.append(Box(left, below, round(end - left, 1), height, name, *texts[name]))
    bottom = below + height if aside else height
    return Picture(len(chain) * (width + _GAP) - _GAP, bottom, boxes, arrows)


def _narrow(chain: Sequence[str], aside: Mapping[str, str], texts: Mapping[str, tuple[str, str, str]]) -> Picture:
    width, height = _COLUMN
    y = {link: place * (height + _COLUMN_GAP) for place, link in enumerate(chain)}
    boxes = [Box(0, y[link], width, height, link, *texts[link]) for link in chain]
    arrows = [f"M{width / 2} {y[before] + height}V{y[after] - 2}" for before, after in pairwise(chain)]
    for name, link in aside.items():
        arrows.append(f"M{_SIDE_X} {y[link] + height / 2}H{width + 2}")
        boxes.append(Box(_SIDE_X, y[link], _SIDE, height, name, *texts[name]))
    return Picture(_SIDE_X + _SIDE if aside else width, max(y.values()) + height, boxes, arrows)


def _row(item: Ancestor) -> Row:
    return Row(
        word=_WORDS.get(item.kind, item.kind),
        key=item.key[:16],
        made=item.made[:10] if item.made else "",
        facts=", ".join(_facts(item)),
        absent=not item.in_store,
    )


def _facts(item: Ancestor) -> Iterator[str]:
    for name, value in item.counts.items():
        yield in_units(value) if name == "bytes" else f"{number(value, 0)} {name}"
