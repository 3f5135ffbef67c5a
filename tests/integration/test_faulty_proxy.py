"""The faulty proxy in front of moto's server: whole when calm, and each fault is what its name says."""

import contextlib
import http.client
import io
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    FlexibleChecksumError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from moto.server import ThreadedMotoServer

from tests.fixtures.faulty_proxy import CORRUPTED, KINDS, Faults, FaultyProxy

BUCKET = "bucket"
SMALL = b"0123456789" * 100
QUICK = tuple(kind for kind in KINDS if kind != "stalled")
"""The faults that cost no time to speak of."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    client(server.get_host_and_port()).create_bucket(Bucket=BUCKET)
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def proxy(upstream: tuple[str, int]) -> Iterator[FaultyProxy]:
    with FaultyProxy(upstream) as started:
        yield started


@pytest.fixture
def direct(upstream: tuple[str, int]) -> Any:
    return client(upstream)


def client(at: tuple[str, int] | FaultyProxy, attempts: int = 1, **config: Any) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=at.endpoint if isinstance(at, FaultyProxy) else f"http://{at[0]}:{at[1]}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(retries={"mode": "standard", "total_max_attempts": attempts}, **config),
    )


def raw(proxy: FaultyProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(proxy.endpoint.rpartition(":")[2])), timeout=10)


def received(connection: socket.socket) -> bytes:
    """All that comes until an orderly end; raises ConnectionResetError at a reset."""
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


def answer_to(proxy: FaultyProxy, request: bytes) -> bytes:
    """All that comes for bytes sent as they are, until an orderly end."""
    with raw(proxy) as connection:
        connection.sendall(request)
        return received(connection)


def exists(direct: Any, key: str) -> bool:
    found = direct.list_objects_v2(Bucket=BUCKET, Prefix=key).get("Contents", [])
    return any(item["Key"] == key for item in found)


# --- calm ------------------------------------------------------------------------------------------------------------


def test_multipart_uploads_and_range_reads_pass_unchanged(proxy: FaultyProxy, direct: Any) -> None:
    data = random.Random(1).randbytes(24 << 20)
    through = client(proxy)
    parts = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=3)
    through.upload_fileobj(io.BytesIO(data), BUCKET, "big", Config=parts)
    assert direct.get_object(Bucket=BUCKET, Key="big")["Body"].read() == data
    got = io.BytesIO()
    through.download_fileobj(BUCKET, "big", got, Config=parts)
    assert got.getvalue() == data
    for start, end in [(0, 0), (5, 1_000_004), (len(data) - 3, len(data) - 1)]:
        answer = through.get_object(Bucket=BUCKET, Key="big", Range=f"bytes={start}-{end}")
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert answer["Body"].read() == data[start : end + 1]
    assert proxy.log == []


def test_many_clients_at_once_get_their_own_answers(proxy: FaultyProxy) -> None:
    def turn(number: int) -> bool:
        key, data = f"many/{number}", b"%d" % number * 1000
        through.put_object(Bucket=BUCKET, Key=key, Body=data)
        return bool(through.get_object(Bucket=BUCKET, Key=key)["Body"].read() == data)

    through = client(proxy, max_pool_connections=8)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(turn, range(40)))


def test_one_connection_carries_many_requests(proxy: FaultyProxy, direct: Any) -> None:
    """Answers without a body do not hold up the next one."""
    direct.put_object(Bucket=BUCKET, Key="kept", Body=SMALL)
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
    connection.connect()
    first = connection.sock
    for method, status, body in [
        ("HEAD", 200, b""),
        ("GET", 200, SMALL),
        ("DELETE", 204, b""),
        ("GET", 404, None),
        ("PUT", 200, b""),
    ]:
        connection.request(method, f"/{BUCKET}/kept", body=b"new" if method == "PUT" else None, headers=SIGNED)
        answer = connection.getresponse()
        assert answer.status == status
        got = answer.read()
        assert got == body or body is None
        assert connection.sock is first
    connection.request("GET", f"/{BUCKET}/kept", headers=SIGNED | {"If-None-Match": answer.headers["ETag"]})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (304, b"")
    assert connection.sock is first
    connection.close()


SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, Signature=0"}
"""moto takes it for a signature; without one it refuses to read or write."""


class Upstream:
    """A server for one request that records it and answers with given bytes."""

    def __init__(self, answer: bytes, end: bytes) -> None:
        self.got = b""
        self._answer, self._end = answer, end
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listening.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with self._listening, connection, contextlib.suppress(ConnectionError):
            while self._end not in self.got:
                self.got += connection.recv(1 << 16)
                if b"Expect" in self.got and self.got.find(b"\r\n\r\n") == len(self.got) - 4:
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(self._answer)

    def join(self) -> None:
        self._thread.join(10)


def test_chunks_and_continue_pass_both_ways_byte_for_byte() -> None:
    head = b"PUT /a%20b?x=1 HTTP/1.1\r\nHOST: somewhere:1\r\nx-Odd:  1 \r\nTransfer-Encoding: chunked\r\n"
    head += b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
    chunks = b"5;x=y\r\nhello\r\n10000\r\n" + b"x" * 0x10000 + b"\r\n0\r\nX-Sum: 1\r\n\r\n"
    answer = b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nX: y\r\n"
    body = b"3\r\nabc\r\n0\r\n\r\n"
    server = Upstream(answer + b"\r\n" + body, chunks[-20:])
    with FaultyProxy(server.address) as proxy, raw(proxy) as connection:
        connection.sendall(head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(chunks)
        assert received(connection) == answer + b"Connection: close\r\n\r\n" + body
    server.join()
    assert server.got == head + chunks


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    server = Upstream(b"HTTP/1.1 200 OK\r\n\r\nall of it", b"\r\n\r\n")
    with FaultyProxy(server.address) as proxy:
        assert answer_to(proxy, b"GET / HTTP/1.1\r\n\r\n") == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it"
    server.join()


def test_an_answer_that_comes_before_the_body_is_passed_on() -> None:
    server = Upstream(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", b"\r\n\r\n")
    with FaultyProxy(server.address) as proxy:
        answer = answer_to(proxy, b"PUT / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    server.join()


def test_a_server_that_dies_resets_the_client() -> None:
    server = Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", b"\r\n\r\n")
    with FaultyProxy(server.address) as proxy:
        for _ in range(2):  # the second finds nobody there
            with pytest.raises(ConnectionResetError):
                answer_to(proxy, b"GET / HTTP/1.1\r\n\r\n")
            server.join()


def test_a_stopped_proxy_refuses_and_comes_back_at_the_same_place(proxy: FaultyProxy) -> None:
    endpoint = proxy.endpoint
    with raw(proxy) as connection:
        connection.sendall(b"PUT / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
        proxy.stop()
        with pytest.raises(ConnectionResetError):
            received(connection)
    with pytest.raises(ConnectionRefusedError):
        raw(proxy)
    proxy.start()
    assert proxy.endpoint == endpoint
    client(proxy).list_objects_v2(Bucket=BUCKET)


# --- each fault ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "code"), [("error_500", "InternalError"), ("slow_down_503", "SlowDown")])
def test_a_refusal_is_an_answer_in_s3s_own_words(proxy: FaultyProxy, direct: Any, kind: str, code: str) -> None:
    through = client(proxy)
    proxy.set(Faults(kinds=(kind,)))
    with pytest.raises(ClientError) as caught:
        through.put_object(Bucket=BUCKET, Key=kind, Body=SMALL * 1000)
    assert caught.value.response["Error"]["Code"] == code
    with pytest.raises(ClientError, match=kind[-3:]):
        through.head_object(Bucket=BUCKET, Key=kind)
    assert not exists(direct, kind)
    assert proxy.log == [("PUT", f"/{BUCKET}/{kind}", kind), ("HEAD", f"/{BUCKET}/{kind}", kind)]


def test_a_refusal_reads_the_body_and_leaves_the_connection_usable(proxy: FaultyProxy) -> None:
    proxy.set(Faults(kinds=("slow_down_503",)))
    with raw(proxy) as connection:
        for number in range(2):
            body = b"4\r\nbody\r\n0\r\n\r\n"
            connection.sendall(b"PUT /%d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" % number + body)
            answer = connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"<Code>SlowDown</Code>" in answer
    assert [path for _, path, _ in proxy.log] == ["/0", "/1"]


def test_a_refusal_does_not_ask_for_the_body(proxy: FaultyProxy) -> None:
    proxy.set(Faults(kinds=("error_500",)))
    answer = answer_to(proxy, b"PUT / HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("kind", ["reset_before", "reset_upload"])
def test_a_broken_request_is_not_carried_out(proxy: FaultyProxy, direct: Any, kind: str) -> None:
    proxy.set(Faults(kinds=(kind,)))
    for size in (1, 1 << 20):
        with pytest.raises(ConnectionClosedError):
            client(proxy).put_object(Bucket=BUCKET, Key=kind, Body=b"x" * size)
    with pytest.raises(ConnectionResetError):
        answer_to(proxy, f"PUT /{BUCKET}/{kind} HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody".encode())
    assert not exists(direct, kind)
    assert proxy.counts == {kind: 3}


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"])
def test_a_broken_upload_reaches_the_server_in_part(framing: bytes) -> None:
    server = Upstream(b"", b"x" * 500)
    with FaultyProxy(server.address, Faults(kinds=("reset_upload",))) as proxy:
        with pytest.raises(ConnectionResetError):
            answer_to(proxy, b"PUT / HTTP/1.1\r\n" + framing + b"x" * 1000)
        server.join()
    assert server.got.count(b"x") == 500


def test_a_lost_response_leaves_the_object(proxy: FaultyProxy, direct: Any) -> None:
    proxy.set(Faults(kinds=("lost_response",)))
    with pytest.raises(ConnectionClosedError):
        client(proxy).put_object(Bucket=BUCKET, Key="lost", Body=SMALL, IfNoneMatch="*")
    assert direct.get_object(Bucket=BUCKET, Key="lost")["Body"].read() == SMALL
    with pytest.raises(ConnectionClosedError):
        client(proxy).delete_object(Bucket=BUCKET, Key="lost")
    assert not exists(direct, "lost")
    with pytest.raises(ConnectionResetError):
        answer_to(proxy, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def test_a_repeated_create_whose_response_was_lost_is_told_that_it_exists(proxy: FaultyProxy, direct: Any) -> None:
    proxy.set(Faults(kinds=("lost_response",), only="^PUT", most=1))
    with pytest.raises(ClientError) as caught:
        client(proxy, attempts=3).put_object(Bucket=BUCKET, Key="own", Body=SMALL, IfNoneMatch="*")
    assert caught.value.response["Error"]["Code"] == "PreconditionFailed"
    assert caught.value.response["ResponseMetadata"]["RetryAttempts"] == 1
    assert exists(direct, "own")


def test_a_truncated_answer_announces_all_and_brings_half(proxy: FaultyProxy, direct: Any) -> None:
    direct.put_object(Bucket=BUCKET, Key="half", Body=SMALL)
    proxy.set(Faults(kinds=("truncated",)))
    with pytest.raises(ResponseStreamingError, match=r"IncompleteRead\(500 bytes read, 500 more expected"):
        client(proxy).get_object(Bucket=BUCKET, Key="half")["Body"].read()
    request = f"GET /{BUCKET}/half HTTP/1.1\r\nHost: x\r\nAuthorization: {SIGNED['Authorization']}\r\n\r\n"
    head, _, body = answer_to(proxy, request.encode()).partition(b"\r\n\r\n")
    assert b"content-length: 1000" in head.lower()
    assert body == SMALL[:500]
    client(proxy).head_object(Bucket=BUCKET, Key="half")
    assert proxy.log == [("GET", f"/{BUCKET}/half", "truncated")] * 2


def test_a_slow_answer_is_whole(proxy: FaultyProxy, direct: Any) -> None:
    for size in (0, 1, 1000, 2 << 20):
        data = random.Random(size).randbytes(size)
        direct.put_object(Bucket=BUCKET, Key="slow", Body=data)
        proxy.set(Faults(kinds=("slow",)))
        began = time.monotonic()
        assert client(proxy).get_object(Bucket=BUCKET, Key="slow")["Body"].read() == data
        if size >= 1000:
            assert time.monotonic() - began > 0.2  # what makes it a fault at all
    assert proxy.counts == {"slow": 3}


def test_a_stalled_connection_is_silent_until_the_client_gives_up(proxy: FaultyProxy, direct: Any) -> None:
    proxy.set(Faults(kinds=("stalled",), stalled_seconds=30))
    with pytest.raises(ReadTimeoutError):
        client(proxy, read_timeout=0.2).put_object(Bucket=BUCKET, Key="stalled", Body=SMALL)
    assert exists(direct, "stalled")
    proxy.set(Faults(kinds=("stalled",), stalled_seconds=0.2))
    with pytest.raises(ConnectionClosedError):
        client(proxy).get_object(Bucket=BUCKET, Key="stalled")


def test_a_corrupted_answer_differs_by_one_bit(proxy: FaultyProxy, direct: Any) -> None:
    data = random.Random(3).randbytes(200_000)
    direct.put_object(Bucket=BUCKET, Key="wrong", Body=data)
    proxy.set(Faults(kinds=(CORRUPTED,)))
    for start, end in [(1, 199_999), (7, 7)]:
        answer = client(proxy).get_object(Bucket=BUCKET, Key="wrong", Range=f"bytes={start}-{end}")
        got, right = answer["Body"].read(), data[start : end + 1]
        assert len(got) == len(right)
        assert sum((a ^ b).bit_count() for a, b in zip(got, right, strict=True)) == 1
    with pytest.raises(FlexibleChecksumError):
        client(proxy).get_object(Bucket=BUCKET, Key="wrong")["Body"].read()
    client(proxy).list_objects_v2(Bucket=BUCKET)
    assert proxy.counts == {CORRUPTED: 3}


# --- many faults -----------------------------------------------------------------------------------------------------


def puts_and_gets(proxy: FaultyProxy, turns: int) -> None:
    """Small puts and gets in order by a client that repeats what was not answered."""
    through = client(proxy, attempts=10, read_timeout=0.5)
    for number in range(turns):
        key, data = f"turn/{number}", b"%d" % number * 100
        through.put_object(Bucket=BUCKET, Key=key, Body=data)
        for _ in range(10):
            with contextlib.suppress(ResponseStreamingError):  # boto3 does not repeat these by itself
                assert through.get_object(Bucket=BUCKET, Key=key)["Body"].read() == data
                break
        else:
            pytest.fail("truncated ten times in a row")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto3 repeat at once: what is tested is what it repeats, not how long it waits."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


@pytest.mark.usefixtures("hasty")
def test_with_repetition_all_ends_right_under_every_fault(proxy: FaultyProxy, direct: Any) -> None:
    proxy.set(Faults(seed=4, rate=0.2, stalled_seconds=0.2))
    puts_and_gets(proxy, 100)
    assert set(proxy.counts) == set(KINDS)
    assert 0.1 < len(proxy.log) / proxy.requests < 0.3
    for number in range(100):
        assert direct.get_object(Bucket=BUCKET, Key=f"turn/{number}")["Body"].read() == b"%d" % number * 100


@pytest.mark.usefixtures("hasty")
def test_the_same_seed_gives_the_same_faults(upstream: tuple[str, int]) -> None:
    logs = []
    for seed in (1, 1, 2):
        with FaultyProxy(upstream, Faults(seed=seed, rate=0.3, kinds=QUICK)) as proxy:
            puts_and_gets(proxy, 15)
            logs.append(proxy.log)
    assert logs[0]
    assert logs[0] == logs[1] != logs[2]


def test_faults_can_be_aimed_and_stopped(proxy: FaultyProxy) -> None:
    through = client(proxy)
    proxy.set(Faults(kinds=("error_500",), only=r"^PUT .*/aimed\?x-id=|^PUT .*/aimed$", most=1))
    through.put_object(Bucket=BUCKET, Key="other", Body=b"")
    with pytest.raises(ClientError):
        through.put_object(Bucket=BUCKET, Key="aimed", Body=b"")
    through.put_object(Bucket=BUCKET, Key="aimed", Body=b"")
    proxy.set(Faults(kinds=("error_500",)))
    with pytest.raises(ClientError):
        through.head_object(Bucket=BUCKET, Key="aimed")
    proxy.calm()
    through.head_object(Bucket=BUCKET, Key="aimed")
    assert proxy.counts == {"error_500": 2}


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'nonsense'"):
        Faults(kinds=("nonsense", "slow"))
