"""Replies of servers that others run, received within bounds, and the proxies of the environment.

A reply has a limit of bytes, before and after it is unpacked, and a deadline for all of it: a time limit for each byte
never ends with a server that sends one now and then.

Proxies in the environment are meant for other machines: this one is asked directly, and a proxy that cannot be used
stands in the way of nothing that stays here.
"""

import contextlib
import os
import time
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deepspec.errors import RecipeError

if TYPE_CHECKING:
    import httpx

PLAIN = {"Accept-Encoding": "identity"}
"""Header of a request whose reply shall not be compressed."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_ZLIB_OR_GZIP = 47


class UnusableReply(Exception):
    """A reply that is longer than allowed, or cannot be unpacked."""


class Body:
    """A reply's body, unpacked as it comes.

    Args:
        encoding: its Content-Encoding.
        max_bytes: most bytes, sent and unpacked.

    Raises:
        UnusableReply: its encoding cannot be unpacked within bounds.
    """

    def __init__(self, encoding: str, max_bytes: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise UnusableReply(f"it is compressed ({encoding[:40]}), which was not asked for")
        self._unpacking = zlib.decompressobj(_ZLIB_OR_GZIP) if encoding not in ("", "identity") else None
        self._max_bytes = max_bytes
        self._received = 0
        self._data = bytearray()

    def add(self, chunk: bytes) -> None:
        """Take in what came next.

        Raises:
            UnusableReply: it is too long, or cannot be unpacked.
        """
        self._received += len(chunk)
        if self._unpacking is None:
            self._data += chunk
        else:
            try:
                # One byte more than allowed shows that there is more.
                self._data += self._unpacking.decompress(chunk, self._max_bytes - len(self._data) + 1)
            except zlib.error as error:
                raise UnusableReply("it cannot be unpacked") from error
        if max(self._received, len(self._data)) > self._max_bytes:
            raise UnusableReply(f"it is longer than {self._max_bytes:,} bytes")

    def whole(self) -> bytes:
        """All of it.

        Raises:
            UnusableReply: it ends early.
        """
        if self._unpacking is not None and self._received and not self._unpacking.eof:
            raise UnusableReply("its compressed body breaks off")
        return bytes(self._data)


def received(reply: "httpx.Response", max_bytes: int, seconds: float) -> "httpx.Response":
    """A streamed reply with its body.

    Args:
        reply: of which nothing was read yet.
        max_bytes: most bytes of the body.
        seconds: until all of it must be there.

    Raises:
        UnusableReply: it is too long, or cannot be unpacked.
        TimeoutError: it did not end in time.
    """
    deadline = time.monotonic() + seconds
    body = Body(reply.headers.get("Content-Encoding", ""), max_bytes)
    for chunk in reply.iter_raw():
        body.add(chunk)
        _see(deadline)
    return _with_body(reply, body.whole())


async def received_async(reply: "httpx.Response", max_bytes: int, seconds: float) -> "httpx.Response":
    """Like `received`, of an asynchronous client."""
    deadline = time.monotonic() + seconds
    body = Body(reply.headers.get("Content-Encoding", ""), max_bytes)
    async for chunk in reply.aiter_raw():
        body.add(chunk)
        _see(deadline)
    return _with_body(reply, body.whole())


def ask_this_machine_directly(environment: MutableMapping[str, str]) -> None:
    """Except this machine's own addresses from the proxies that an environment names, for all that reads it."""
    known = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in known.split(",") if host.strip()]
    if "*" not in hosts:
        both = ",".join([*hosts, *(host for host in _LOOPBACK if host not in hosts)])
        environment.update(no_proxy=both, NO_PROXY=both)


def heeds_proxies(url: str, *, where: str) -> bool:
    """Whether a client that asks `url` only may read the environment's proxies (httpx's `trust_env`).

    An httpx client cannot even be made where the environment names a proxy that it cannot use.

    Args:
        url: of a server.
        where: what names it, for messages.

    Raises:
        RecipeError: it would be asked through a SOCKS proxy, for which a package is missing.
    """
    unusable = _socks()
    if unusable and not _is_here(url):
        raise _unusable(unusable[0], where)
    return not unusable


@contextlib.contextmanager
def without_socks(addresses: Mapping[str, str]) -> Iterator[None]:
    """Set SOCKS proxies that cannot be used aside for the block, in which libraries ask servers of this machine.

    Args:
        addresses: of the servers that they will ask, by the variable that names each.

    Raises:
        RecipeError: one of them is on another machine.
    """
    names = _socks()
    for name in names:
        for where, url in addresses.items():
            if not _is_here(url):
                raise _unusable(name, where)
    _SET_ASIDE.update({name: os.environ.pop(name) for name in names if name in os.environ})
    try:
        yield
    finally:
        for name in names:
            value = _SET_ASIDE.pop(name, None)
            if value is not None:
                os.environ.setdefault(name, value)


_SET_ASIDE: dict[str, str] = {}


def _socks() -> list[str]:
    """The variables that name a SOCKS proxy which this Python's HTTP client cannot use, also while set aside."""
    if find_spec("socksio") is not None:
        return []
    named = {**os.environ, **_SET_ASIDE}
    return sorted(name for name in named if name.lower() in _PROXIES and named[name].lower().startswith("socks"))


def _unusable(name: str, where: str) -> RecipeError:
    return RecipeError(
        f"{name} names a SOCKS proxy, which needs a package that is not installed.",
        where=where,
        remedy="Run `pip install socksio`, name an HTTP proxy, or unset the variable.",
    )


def _is_here(url: str) -> bool:
    """Whether `url` leads to this machine (a file does)."""
    parts = urlsplit(url)
    return parts.scheme not in ("http", "https") or parts.hostname in _LOOPBACK


def _see(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("the reply did not end in time")


def _with_body(reply: "httpx.Response", body: bytes) -> "httpx.Response":
    import httpx

    gone = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(name, value) for name, value in reply.headers.multi_items() if name.lower() not in gone]
    return httpx.Response(reply.status_code, headers=headers, content=body)
