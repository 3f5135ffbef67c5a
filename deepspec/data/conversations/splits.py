"""Which split a prompt belongs to: prompts that share what is asked stay together.

Evaluation asks a held-out conversation's turns, so a turn of the user that stands in two conversations, as it is or in
nearly the same words, connects them: connected prompts fall into one split. The split is drawn for the component by a
hash of its first prompt. A prompt that is connected with no other is therefore drawn by its own hash.

Two kinds of components are only trained on:

* A turn that stands in more than 50 prompts and in more than 0.1 % of them ("continue", "thanks") connects nothing: it
  would tie everything together. A prompt that begins with such a turn is never asked, and all that it is connected with
  stays with it.
* A large component (a template filled in many ways) would overfill a small split.

What they take from the held-out splits is made up for by the other components. If the hashes draw splits of other sizes
than wanted, by more than three standard deviations or three quarters of a point, the components are dealt out in the
order of their hashes instead.

The result is a function of the set of prompts. Memory: about 40 bytes a turn, and what NearDuplicates takes.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepspec.data.config import SPLITS, Config
from deepspec.data.conversations.mixture import fraction_of
from deepspec.data.conversations.near_duplicates import NearDuplicates
from deepspec.data.conversations.words import plain
from deepspec.data.sources.rows import Message

SIMILAR = 0.8
"""Least Jaccard similarity of two turns' word triples that connects them."""
_COMMON_PROMPTS, _COMMON_SHARE = 50, 0.001
_LARGE = 0.25
"""A component of more than this part of the smallest held-out split is trained on."""
_TOLERANCE = 0.0075

Prompts = Callable[[], Iterable[tuple[str, Sequence[Message]]]]
"""A pass over (prompt id, messages) of all prompts, each once, by ascending id."""
Indices = npt.NDArray[np.int64]


def split_of(prompt_id: str, config: Config) -> str:
    """The split that the hash of a prompt draws, if no other prompt is connected with it."""
    share = fraction_of(config.seed, "split", prompt_id)
    edge = 0.0
    for name in SPLITS[1:]:
        edge += getattr(config.splits, name)
        if share < edge:
            return name
    return SPLITS[0]


def assign(prompts: Prompts, config: Config, folder: Path) -> list[str]:
    """The split of every prompt, in order.

    Args:
        prompts: what is kept; read twice.
        config: its `splits` and `seed` are read; something is held out.
        folder: for temporary files.
    """
    shares = np.array([getattr(config.splits, name) for name in SPLITS[1:]])
    names, turns = _read(prompts)
    if not names:
        return []
    connected = _connected(prompts, turns, len(names), folder)
    component_N, first_C, size_C = connected.components()
    draw_C = np.array([fraction_of(config.seed, "split", names[first]) for first in first_C])
    smallest = shares[shares > 0].min() * len(names)
    trained_C = size_C > max(1.0, _LARGE * smallest)
    trained_C[component_N[connected.begins_common_N]] = True
    chosen_C = _draw(draw_C, np.where(trained_C, 0, size_C), shares, len(names))
    chosen_C[trained_C] = 0
    return [SPLITS[split] for split in chosen_C[component_N]]


class _Turns:
    """The user's turns of all prompts, one after the other.

    Attributes:
        hashes_T: 64 bits of each turn's normalised text, uint64.
        prompts_T: the prompt that each stands in.
        starts_N: the first turn of each prompt; where the user says nothing, that of the next.
    """

    def __init__(self, hashes: "array[int]", prompts: "array[int]", starts: "array[int]") -> None:
        self.hashes_T = np.frombuffer(hashes, dtype=np.uint64)
        self.prompts_T: Indices = np.frombuffer(prompts, dtype=np.int64)
        self.starts_N: Indices = np.frombuffer(starts, dtype=np.int64)


def _read(prompts: Prompts) -> tuple[list[str], _Turns]:
    names: list[str] = []
    hashes, places, starts = array("Q"), array("q"), array("q")
    for index, (name, messages) in enumerate(prompts()):
        names.append(name)
        starts.append(len(hashes))
        for text in _asked(messages):
            hashes.append(_hash(text))
            places.append(index)
    return names, _Turns(hashes, places, starts)


def _asked(messages: Iterable[Message]) -> Iterator[str]:
    return (message["content"] for message in messages if message["role"] == "user")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(plain(text).encode(), digest_size=8).digest(), "little")


class _Connected:
    """A graph of prompts and the turns that connect them.

    Args:
        num_prompts: N; they are the first nodes.
        num_turns: the others.
        edges: pairs of nodes, [E, 2].
        begins_common_N: which prompts begin with a common turn.
    """

    def __init__(
        self, num_prompts: int, num_turns: int, edges: Indices, begins_common_N: npt.NDArray[np.bool_]
    ) -> None:
        self._num_prompts = num_prompts
        self._num_nodes = num_prompts + num_turns
        self._edges = edges
        self.begins_common_N = begins_common_N

    def components(self) -> tuple[Indices, Indices, Indices]:
        """Of each prompt its component, and of each component its first prompt and how many it has."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        ones = np.ones(len(self._edges), dtype=np.int8)
        graph = coo_array((ones, (self._edges[:, 0], self._edges[:, 1])), shape=(self._num_nodes,) * 2)
        _, labels = connected_components(graph, directed=False)
        _, first_C, component_N, size_C = np.unique(
            labels[: self._num_prompts], return_index=True, return_inverse=True, return_counts=True
        )
        return component_N, first_C, size_C


def _connected(prompts: Prompts, turns: _Turns, num_prompts: int, folder: Path) -> _Connected:
    pairs = np.unique(np.stack([turns.hashes_T, turns.prompts_T.astype(np.uint64)], axis=1), axis=0)
    distinct_D, node_P, counts_D = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    common_D = counts_D > max(_COMMON_PROMPTS, _COMMON_SHARE * num_prompts)
    turn_T = np.searchsorted(distinct_D, turns.hashes_T)
    # A prompt in which the user says nothing begins with no turn.
    has_turn_N = np.diff(turns.starts_N, append=len(turn_T)) > 0
    begins_common_N = np.zeros(num_prompts, dtype=np.bool_)
    begins_common_N[has_turn_N] = common_D[turn_T[turns.starts_N[has_turn_N]]]
    kept_P = ~common_D[node_P]
    equal = np.stack([pairs[kept_P, 1].astype(np.int64), num_prompts + node_P[kept_P]], axis=1)
    alike = _alike(prompts, turn_T, ~common_D, folder)
    edges = np.concatenate([equal, num_prompts + alike]) if len(alike) else equal
    return _Connected(num_prompts, len(distinct_D), edges, begins_common_N)


def _alike(prompts: Prompts, turn_T: Indices, wanted_D: npt.NDArray[np.bool_], folder: Path) -> Indices:
    """Pairs of different turns in nearly the same words, [P, 2]; a pair that others connect may be left out."""
    nodes: list[int] = []
    seen_D = ~wanted_D
    with NearDuplicates(folder, SIMILAR) as near:
        place = 0
        for _, messages in prompts():
            for text in _asked(messages):
                turn = turn_T[place]
                place += 1
                if not seen_D[turn]:
                    seen_D[turn] = True
                    nodes.append(int(turn))
                    near.add([{"role": "user", "content": text}])
        pairs = [(nodes[one], nodes[other]) for one, other in near.pairs()]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _draw(draw_C: npt.NDArray[np.float64], size_C: Indices, share_S: npt.NDArray[np.float64], total: int) -> Indices:
    """The split of each component, as an index into SPLITS.

    Args:
        draw_C: in [0, 1), of each.
        size_C: how many prompts each has; 0: it is not to be held out.
        share_S: which part of all prompts each held-out split is to have.
        total: of all prompts.
    """
    available = max(int(size_C.sum()), 1)
    chosen_C = _between(draw_C, np.cumsum(share_S) * (total / available))
    wanted_S = share_S * total
    sizes_S = np.bincount(chosen_C, weights=size_C, minlength=len(share_S) + 1)[1:]
    spread_S = 3 * np.sqrt(wanted_S * (1 - share_S))
    if (np.abs(sizes_S - wanted_S) <= np.maximum(_TOLERANCE * total, spread_S)).all():
        return chosen_C
    order = np.argsort(draw_C, kind="stable")
    middles = np.cumsum(size_C[order]) - size_C[order] / 2
    chosen_C[order] = _between(middles, np.cumsum(wanted_S))
    return chosen_C


def _between(values: npt.NDArray[np.float64], edges_S: npt.NDArray[np.float64]) -> Indices:
    """1 below the first edge, 2 below the second, …; 0 from the last one on."""
    place = np.searchsorted(edges_S, values, side="right") + 1
    return np.where(place > len(edges_S), 0, place).astype(np.int64)
