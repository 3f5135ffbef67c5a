"""How many bytes of tensors are alive at once while something is computed, counted tensor by tensor.

Of a process's memory on a CPU, what an allocator and code pages take is of the size of a small training itself. So what
is counted here is what the program asks for: every storage from the operation that makes it until nothing holds it any
more, autograd included. Not counted: what was there before, and what a kernel takes and gives back within one call.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts inside its `with` block; each operation costs some microseconds more, and no result changes.

    Attributes:
        now: bytes alive that were made inside the block.
        peak: the most there were at any time.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To be skipped, torch would import its compiler: 1.3 s of a short training.
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do `func`, and count what it made."""
        del types
        kwargs = kwargs or {}
        given = list(_tensors((*args, *kwargs.values())))
        for tensor in given:
            self._note(tensor, new=False)
        result = self.compute(func, args, kwargs, given)
        for tensor in _tensors((result,)):
            self._note(tensor, new=True)
        return result

    def compute(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> Any:
        """The operation itself; `given` are the tensors among what it is given."""
        del given
        return func(*args, **kwargs)

    def _note(self, tensor: Tensor, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001  # the storage itself: Python may make new wrappers of it
        if key in self._known:
            return
        size = storage.nbytes() if new else 0  # what is only read, or written to, was there before

        def freed(_: Any) -> None:
            if self._known.pop(key, None) is not None:
                self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each once."""
    return sum(dict(map(_storage, tensors)).values())


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage._cdata, storage.nbytes()  # noqa: SLF001  # see above


def _tensors(items: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among `items` and in lists of them."""
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)
