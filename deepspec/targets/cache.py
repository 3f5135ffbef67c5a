"""The target's keys and values, kept in place for a batch of rows that are at different lengths.

New keys are written at each row's own offset into memory that was allocated once; what is returned to attend to is a
view of that memory, so the caller's mask must hide what lies behind a row's end (`mask` makes that mask).

Shapes: B rows, H key/value heads, C capacity, Q new positions, K keys to attend to, d head dim.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deepspec.targets.family import TargetSpec

Masks = Mapping[int | None, Tensor | None]
"""What layers see, by their window; each as from `causal_mask`."""


class RowCache:
    """Preallocated keys and values of `rows` rows.

    Args:
        keys_BHCd, values_BHCd: one tensor per layer.
        lengths: valid positions per row; shared with the views of this cache.
        first_row: which of `lengths` the tensors' first row is.

    The forward writes Q positions into every row, and after its last layer every row is Q longer; `crop` then says what
    is kept.
    """

    def __init__(
        self, keys_BHCd: list[Tensor], values_BHCd: list[Tensor], lengths: list[int], *, first_row: int = 0
    ) -> None:
        self._keys = keys_BHCd
        self._values = values_BHCd
        self._lengths = lengths
        self._first = first_row
        self._count = keys_BHCd[0].shape[0]
        self._capacity = keys_BHCd[0].shape[2]
        self._last_layer = len(keys_BHCd) - 1
        self._end = 0
        self._offset = -1
        self._rows_B1: Tensor | None = None
        self._columns_BQ: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        spec: TargetSpec,
        rows: int,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "RowCache":
        """An empty cache for `rows` rows of at most `capacity` positions each.

        Layers with a window keep all positions too: a row that is cropped needs those from before its window again.
        """
        shapes = [(rows, layer.num_key_value_heads, capacity, layer.head_dim) for layer in spec.layers]
        # Zeros, not uninitialised memory: masked scores are dropped, but 0 * NaN values would not be.
        # And not inference tensors: those could be written in inference mode only.
        with torch.inference_mode(mode=False):
            keys = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]
            values = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]
        return cls(keys, values, [0] * rows)

    @property
    def lengths_B(self) -> list[int]:  # noqa: N802  # shape-suffixed
        """Valid positions per row."""
        return self._lengths[self._first : self._first + self._count]

    @property
    def num_layers(self) -> int:
        """Decoder layers it holds keys of."""
        return len(self._keys)

    @property
    def capacity(self) -> int:
        """Most positions a row can hold."""
        return self._capacity

    def crop(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths[r]` positions of each row.

        Raises:
            ValueError: another number of rows, or a row would become longer.
        """
        if len(lengths) != self._count:
            raise ValueError(f"{len(lengths)} lengths for {self._count} rows")
        for row, length in enumerate(lengths, start=self._first):
            if not 0 <= length <= self._lengths[row]:
                raise ValueError(f"row {row} has {self._lengths[row]} positions and cannot be cropped to {length}")
            self._lengths[row] = length

    def reset_row(self, row: int) -> None:
        """Empty one row."""
        self._lengths[self._first + row] = 0

    def view(self, first: int, count: int = 1) -> "RowCache":
        """The rows `first` … `first + count - 1` as a cache of their own over the same memory and lengths."""
        keys = [keys.narrow(0, first, count) for keys in self._keys]
        values = [values.narrow(0, first, count) for values in self._values]
        return RowCache(keys, values, self._lengths, first_row=self._first + first)

    def row(self, row: int) -> "RowCache":
        """One row as a batch of one, e.g. to prefill it while the others wait."""
        return self.view(row, 1)

    def move_row(self, source: int, destination: int) -> None:
        """Copy one row over another, so that running rows can be kept in front."""
        length = self._lengths[self._first + source]
        for storage in (*self._keys, *self._values):
            storage[destination, :, :length] = storage[source, :, :length]
        self._lengths[self._first + destination] = length

    def mask(self, num_queries: int, window: int | None = None) -> Tensor | None:
        """What Q new positions per row see; see `causal_mask`."""
        return causal_mask(self.lengths_B, num_queries, window=window, device=self._keys[0].device)

    def starts(self) -> Tensor:
        """Each row's length [B, 1]: the position its next token gets."""
        return torch.tensor(self.lengths_B, device=self._keys[0].device)[:, None]

    def update(self, new_keys_BHQd: Tensor, new_values_BHQd: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind each row's end; returns what to attend to, [B, H, K, d].

        Raises:
            ValueError: a row would outgrow the capacity.
        """
        if layer == 0:
            self._plan(new_keys_BHQd.shape[2])
        keys, values = self._keys[layer], self._values[layer]
        if self._offset >= 0:
            keys[:, :, self._offset : self._end] = new_keys_BHQd
            values[:, :, self._offset : self._end] = new_values_BHQd
        else:
            keys[self._rows_B1, :, self._columns_BQ] = new_keys_BHQd.transpose(1, 2)
            values[self._rows_B1, :, self._columns_BQ] = new_values_BHQd.transpose(1, 2)
        if layer == self._last_layer:
            self._grow(new_keys_BHQd.shape[2])
        return keys[:, :, : self._end], values[:, :, : self._end]

    def _plan(self, num_queries: int) -> None:
        lengths = self.lengths_B
        longest = max(lengths)
        self._end = longest + num_queries
        if self._end > self._capacity:
            raise ValueError(f"a row would need {self._end} positions, but the cache was made for {self._capacity}")
        if min(lengths) == longest:
            self._offset = longest
            return
        self._offset = -1
        device = self._keys[0].device
        if self._rows_B1 is None:
            self._rows_B1 = torch.arange(self._count, device=device)[:, None]
        starts_B = torch.tensor(lengths, device=device)
        self._columns_BQ = starts_B[:, None] + torch.arange(num_queries, device=device)

    def _grow(self, num_queries: int) -> None:
        for row in range(self._first, self._first + self._count):
            self._lengths[row] += num_queries


def causal_mask(
    lengths_B: Sequence[int], num_queries: int, *, window: int | None = None, device: torch.device | str = "cpu"
) -> Tensor | None:
    """What Q new positions per row see: bool [B, 1, Q, K], True = visible; None when the plain rules do.

    The plain rules are Hugging Face's without a mask: one query sees everything, several are causal from an empty
    cache.

    Args:
        lengths_B: how many positions each row has already; where all are equal, the mask is [1, 1, Q, K].
        num_queries: Q.
        window: how many positions a query sees, its own included; None: all up to its own.
        device: of the mask.
    """
    longest = max(lengths_B)
    same = min(lengths_B) == longest
    num_keys = longest + num_queries
    if same and (num_queries == 1 or longest == 0) and (window is None or num_keys <= window):
        return None
    keys_K = torch.arange(num_keys, device=device)
    starts_B = torch.tensor(lengths_B[:1] if same else lengths_B, device=device)
    queries_BQ1 = (starts_B[:, None] + torch.arange(num_queries, device=device))[:, :, None]
    visible_BQK = keys_K <= queries_BQ1
    if window is not None:
        visible_BQK &= keys_K > queries_BQ1 - window
    return visible_BQK[:, None]
