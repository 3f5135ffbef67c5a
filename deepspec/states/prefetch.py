"""Fetching what is needed next, in threads, while what is here is used.

Not here: what is fetched, and how long it is kept once it has been taken.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")

_AT_ONCE = 2
_AHEAD = 4


class ReadAhead(Generic[KeyT, ItemT]):
    """Fetches the next few of a list of items.

    One thread calls its methods.

    Args:
        fetch: gets an item; called in threads, two at a time.
        ahead: most items that are fetched and not taken yet; they are in memory.
    """

    def __init__(self, fetch: Callable[[KeyT], ItemT], *, ahead: int = _AHEAD) -> None:
        self._fetch = fetch
        self._num_ahead = ahead
        self._wanted: OrderedDict[KeyT, None] = OrderedDict()
        self._begun: dict[KeyT, Future[ItemT]] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="read-ahead")

    def want(self, keys: Iterable[KeyT]) -> None:
        """Say what will be taken, in this order, after what was said before; repeating it is harmless."""
        self._wanted.update((key, None) for key in keys if key not in self._begun)
        self._begin()

    def take(self, key: KeyT) -> ItemT:
        """An item: fetched before, awaited, or fetched now; the errors are those of `fetch`."""
        self._wanted.pop(key, None)
        begun = self._begun.pop(key, None) or self._threads.submit(self._fetch, key)
        self._begin()
        return begun.result()

    def _begin(self) -> None:
        while self._wanted and len(self._begun) < self._num_ahead:
            key, _ = self._wanted.popitem(last=False)
            self._begun[key] = self._threads.submit(self._fetch, key)
