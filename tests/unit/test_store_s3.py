"""What object storage adds to the store's contract: parts, retries, the probe, streaming by range, and its refusals."""

import json
import os
import re
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from botocore.exceptions import ClientError
from safetensors.torch import save_file

from deepspec.errors import (
    ArtifactDamaged,
    ArtifactError,
    DeepspecError,
    RecipeError,
    RecordTooLarge,
    StoreFull,
    TransientError,
)
from deepspec.store import Artifact, Store, open_store
from deepspec.store.backends import s3, s3_errors
from deepspec.store.gc import collect
from deepspec.store.lease import leased
from deepspec.store.reading import files
from deepspec.store.reading.files import LocalFiles, StreamedFiles, open_files
from tests.fixtures.faulty_proxy import CORRUPTED, Faults, FaultyProxy
from tests.fixtures.refused import refused
from tests.fixtures.s3 import S3Server
from tests.fixtures.store import KEY, PLACES, BucketPlace, fill, ingredients, manifest_path, put

CANARIES = {"AWS_ACCESS_KEY_ID": "AKCANARYIDAAAAAAA", "AWS_SECRET_ACCESS_KEY": "canary/secret+key"}


@pytest.fixture(params=["moto", pytest.param("radosgw", marks=pytest.mark.full)])
def place(request: pytest.FixtureRequest) -> BucketPlace:
    place = PLACES[request.param](request)
    assert isinstance(place, BucketPlace)
    return place


# --- going up and coming down ---------------------------------------------------------------------------------------


def test_large_files_go_up_in_parts_and_come_back_equal(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)  # the smallest part that S3 takes
    store = place.store()
    data = np.random.default_rng(0).bytes(12 << 20)
    artifact = put(store, ingredients(), {"large.bin": data, "small.bin": data[:1000]})
    at = s3.Location.parse(place.location)
    tags = {
        name: s3.client().head_object(Bucket=at.bucket, Key=at.key(f"{artifact.prefix}/{name}"))["ETag"]
        for name in ("large.bin", "small.bin")
    }
    assert tags["large.bin"].strip('"').endswith("-3")
    assert "-" not in tags["small.bin"]
    assert (place.store().get("tokens", artifact.key).directory() / "large.bin").read_bytes() == data


def test_what_was_written_here_is_not_fetched_again(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.store()
    put(store, ingredients(), {"data": b"right"})

    class NoDownloads:
        def __getattr__(self, name: str) -> object:
            assert name != "download_file"
            return getattr(client, name)

    client = store.backend._client  # type: ignore[attr-defined]
    store.backend._made = NoDownloads()  # type: ignore[attr-defined]
    assert (store.get("tokens", KEY).directory() / "data").read_bytes() == b"right"


def test_an_unfinished_upload_is_aborted_by_a_sweep_and_never_seen(place: BucketPlace) -> None:
    store = place.store()
    at = s3.Location.parse(place.location)
    client = s3.client()
    for key in (at.key("tokens/x/data"), f"{at.prefix}-neighbour/data"):
        upload = client.create_multipart_upload(Bucket=at.bucket, Key=key)
        client.upload_part(Bucket=at.bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x")
    assert store.backend.list("") == {}
    if "moto" not in os.environ["AWS_ACCESS_KEY_ID"]:  # whose uploads all began in 2010
        store.backend.sweep(3600.0)
        assert len(client.list_multipart_uploads(Bucket=at.bucket, Prefix=at.prefix)["Uploads"]) == 2
    store.backend.sweep(-5.0)
    (left,) = client.list_multipart_uploads(Bucket=at.bucket, Prefix=at.prefix)["Uploads"]
    assert left["Key"].startswith(f"{at.prefix}-neighbour")
    client.abort_multipart_upload(Bucket=at.bucket, Key=left["Key"], UploadId=left["UploadId"])


def test_a_sweep_removes_local_copies_that_were_not_used_for_long(place: BucketPlace) -> None:
    store = place.store()
    artifact = put(store, ingredients(), {"data": b"right"})
    copies = list(Path(place.disk).rglob("data"))
    assert copies
    store.backend.sweep(3600.0)
    assert copies[0].exists()
    store.backend.sweep(-5.0)
    assert not copies[0].exists()
    assert (artifact.directory() / "data").read_bytes() == b"right"


# --- the probe ------------------------------------------------------------------------------------------------------


def test_a_server_without_conditional_writes_is_refused(place: BucketPlace) -> None:
    store = place.store()

    def ignore_condition(request: object, **_: object) -> None:
        del request.headers["If-None-Match"]  # type: ignore[attr-defined]

    store.backend._client.meta.events.register("before-sign.s3.PutObject", ignore_condition)  # type: ignore[attr-defined]
    for _ in range(2):
        with refused(ArtifactError, "If-None-Match", where="DEEPSPEC_STORE s3://"):
            store.backend.create("registry/1", b"x")
    assert "registry/1" not in store.backend.list("")


@pytest.mark.full
def test_a_bucket_whose_versions_defeat_conditional_writes_is_refused(
    radosgw: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    radosgw.enter(monkeypatch)
    client = s3.client()
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    with refused(ArtifactError, "If-None-Match", where="s3://versioned/store") as caught:
        open_store("s3://versioned/store", cache=tmp_path).backend.create("registry/1", b"x")
    assert "versioning" in str(caught.value.remedy)


@pytest.mark.full
@pytest.mark.parametrize(
    ("variable", "code"),
    [("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId")],
)
def test_a_real_server_refuses_what_is_not_its_secret(
    radosgw: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, code: str
) -> None:
    radosgw.enter(monkeypatch)
    at = f"s3://{radosgw.bucket}/{uuid.uuid4().hex}"
    put(open_store(at, cache=tmp_path / "right"), ingredients())
    url = open_store(at, cache=tmp_path / "right").get("tokens", KEY).location()
    monkeypatch.setenv(variable, CANARIES[variable])
    wrong = open_store(at, cache=tmp_path / "wrong")
    for use in (wrong.backend.clock, lambda: wrong.find("tokens", KEY), lambda: wrong.backend.create("a", b"")):
        with pytest.raises(ArtifactError) as caught:
            use()
        assert CANARIES[variable] not in "".join(traceback.format_exception(caught.value))
    assert code in str(caught.value)
    with refused(ArtifactError, "reading", where=url) as caught:
        open_files(url)
    assert CANARIES[variable] not in str(caught.value)


def documented_policy(bucket: str, prefix: str, user: str) -> dict[str, Any]:
    """The policy that infra/README.md shows, for one user."""
    text = (Path(__file__).parents[2] / "infra" / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```json\n(\{.*?\})\n```", text, re.DOTALL)
    policy: dict[str, Any] = json.loads(shown.replace("BUCKET", bucket).replace("PREFIX", prefix))
    for statement in policy["Statement"]:
        statement["Principal"] = {"AWS": [f"arn:aws:iam:::user/{user}"]}
    return policy


@pytest.mark.full
def test_the_documented_policy_is_enough_and_no_more_than_needed(
    radosgw: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    radosgw.enter(monkeypatch)
    owner = s3.client()
    owner.create_bucket(Bucket="policy")
    policy = documented_policy("policy", "some/store", "runner")
    runner = radosgw.user("runner")

    def allow(**without: str) -> None:
        kept = json.loads(json.dumps(policy))
        for statement in kept["Statement"]:
            statement["Action"] = [action for action in statement["Action"] if action not in without.values()]
        owner.put_bucket_policy(Bucket="policy", Policy=json.dumps(kept))

    def use(number: int) -> None:
        store = open_store("s3://policy/some/store", cache=tmp_path / uuid.uuid4().hex)
        made = put(store, ingredients(number=number))
        with leased(store.backend, f"runs/{number}", keys=[]):
            again = open_store("s3://policy/some/store", cache=tmp_path / uuid.uuid4().hex).get("tokens", made.key)
            assert again.verify() == []
            assert open_files(again.location()).read("data.json")
        collect(store, [], grace_seconds=-2.0)
        assert not store.backend.list("tokens")

    allow()
    runner.enter(monkeypatch)
    use(1)
    with refused(ArtifactError, "PutObject", "AccessDenied", where="s3://policy/elsewhere"):
        open_store("s3://policy/elsewhere", cache=tmp_path / "elsewhere").backend.create("a", b"")
    # Not GetObject: here a user may read what they wrote, whatever the policy says.
    for number, action in enumerate(["s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]):
        allow(action=action)
        try:
            use(10 + number)
        except (ArtifactError, AssertionError):
            continue
        pytest.fail(f"{action} is not needed")


def test_two_stores_in_one_process_have_credentials_of_their_own(
    canaries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by the process's variables, others by what they are given; a profile comes from the usual file."""
    del canaries
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://ours.test")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text("[theirs]\naws_access_key_id=FROMPROFILE\naws_secret_access_key=s\n")
    theirs = {
        "AWS_ENDPOINT_URL_S3": "http://theirs.test",
        "AWS_ACCESS_KEY_ID": "THEIRS",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-1",
        "AWS_MAX_ATTEMPTS": "2",
    }
    seen = []
    for environment in (os.environ, theirs, {"AWS_PROFILE": "theirs"}, {}):
        made = s3.client(environment)
        key = made._get_credentials().access_key  # the client has no public way to its credentials
        seen.append((key, made.meta.endpoint_url.startswith("http://theirs"), made.meta.region_name))
    ours = CANARIES["AWS_ACCESS_KEY_ID"]
    assert [key for key, _, _ in seen] == [ours, "THEIRS", "FROMPROFILE", ours]
    assert [there for _, there, _ in seen] == [False, True, False, False]
    assert seen[1][2] == "eu-1"
    store = open_store(
        "s3://bucket/x", cache=tmp_path, environment={**theirs, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}
    )
    with refused(TransientError, "http://127.0.0.1:1", where="s3://bucket/x"):
        store.backend.list("")


def test_the_probe_leaves_nothing_and_is_made_once(place: BucketPlace) -> None:
    backend = place.store().backend
    sent: list[str] = []
    backend._client.meta.events.register(  # type: ignore[attr-defined]
        "before-send.s3.PutObject", lambda request, **_: sent.append(request.url)
    )
    assert backend.create("a", b"")
    assert backend.create("b", b"")
    assert len(sent) == 4
    assert set(backend.list("")) == {"a", "b"}


# --- streaming by range ---------------------------------------------------------------------------------------------


def artifact_of_every_kind(store: Store) -> Artifact:
    with store.write("tokens", ingredients()) as writing:
        fill(writing.directory)
        tensors = {
            "bf16": torch.arange(12).bfloat16().reshape(3, 4),
            "long": torch.arange(5),
            "none": torch.zeros(0, 3),
            "yes": torch.tensor([True, False]),
        }
        save_file(tensors, writing.directory / "more.safetensors", metadata={"format": "pt"})
    return writing.artifact


def test_files_read_by_range_are_those_of_the_folder(place: BucketPlace) -> None:
    artifact_of_every_kind(place.store())
    artifact = place.store().get("tokens", KEY)
    url = artifact.location()
    assert url == f"{place.location}/tokens/{KEY}/manifest.1.json"
    streamed = open_files(url)
    assert isinstance(streamed, StreamedFiles)
    table = streamed.parquet("rows.parquet")
    assert table.num_row_groups == 3
    rows = table.row_group(1, ["id"])
    tensors = dict(streamed.tensors("more.safetensors"))
    config = streamed.read("draft/config.json")
    empty = streamed.read("empty.txt")
    assert not list(Path(place.disk).rglob("*.parquet"))[1:], "nothing but the writer's own file may be on the disk"
    folder = artifact.directory()
    local = LocalFiles(folder)
    assert rows.equals(pq.ParquetFile(folder / "rows.parquet").read_row_group(1, columns=["id"]))
    assert table.read().equals(local.parquet("rows.parquet").read())
    assert config == (folder / "draft/config.json").read_bytes()
    assert empty == b""
    expected = dict(local.tensors("more.safetensors"))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert tensors["bf16"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "position", "what"),
    [
        ("rows.parquet", 400, "changed"),
        ("rows.parquet", -20, "changed"),
        ("more.safetensors", -3, "changed"),
        ("more.safetensors", 12, "changed"),
        ("draft/config.json", 4, "changed"),
        ("draft/config.json", None, "missing"),
    ],
)
def test_a_changed_byte_is_noticed_where_it_is_read(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch, name: str, position: int | None, what: str
) -> None:
    monkeypatch.setattr("deepspec.store.reading.files._ATTEMPTS", 2)
    artifact = artifact_of_every_kind(place.store())
    data = bytearray(artifact.path(name).read_bytes())
    if position is None:
        artifact.store.backend.delete(f"{artifact.prefix}/{name}")
    else:
        data[position] ^= 1
        place.overwrite(f"{artifact.prefix}/{name}", bytes(data))
    files = open_files(artifact.location())

    def use() -> None:
        if name.endswith(".parquet"):
            table = files.parquet(name)
            for index in range(table.num_row_groups):
                table.row_group(index, ["id", "text"])
        elif name.endswith(".safetensors"):
            list(files.tensors(name))
        else:
            files.read(name)

    with pytest.raises(ArtifactDamaged, match=what) as caught:
        use()
    assert (caught.value.kind, caught.value.key, caught.value.file) == ("tokens", KEY, name)


# --- bodies that change on the way ----------------------------------------------------------------------------------


@pytest.fixture
def changing(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy that everything goes through from here on; so far it changes nothing."""
    host, _, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").partition(":")
    with FaultyProxy((host, int(port))) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def changes(only: str, most: int | None) -> Faults:
    return Faults(kinds=(CORRUPTED,), only=only, most=most)


def test_a_record_that_changed_on_the_way_is_asked_for_again(place: BucketPlace, changing: FaultyProxy) -> None:
    artifact_of_every_kind(place.store())
    store = place.store()
    changing.set(changes(r"/manifest\.", most=2))
    assert store.find("tokens", KEY) is not None
    changing.set(changes(r"/manifest\.", most=None))
    with refused(TransientError, "BodyChanged"):
        store.find("tokens", KEY)


def test_a_record_whose_etag_is_no_checksum_is_read(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = place.store().backend
    backend.create("registry/1", b"x")

    def encrypted(parsed: dict[str, object], **_: object) -> None:
        parsed["ETag"] = '"0123456789abcdef0123456789abcdef"'

    backend._client.meta.events.register("after-call.s3.GetObject", encrypted)  # type: ignore[attr-defined]
    assert backend.read("registry/1") == b"x"


def test_a_create_beside_another_is_asked_for_again(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 409 while another conditional write to the same name goes on: neither has been refused yet."""
    backend = place.store().backend
    backend.create("registry/1", b"x")  # the probe, too
    client: Any = backend._client  # type: ignore[attr-defined]
    put_object, conflicts = client.put_object, ["ConditionalRequestConflict", "OperationAborted"]

    def beside_another(**call: Any) -> Any:
        if conflicts:
            raise ClientError({"Error": {"Code": conflicts.pop(), "Message": ""}}, "PutObject")
        return put_object(**call)

    monkeypatch.setattr(client, "put_object", beside_another)
    assert backend.create("registry/2", b"y")
    assert not conflicts
    assert backend.read("registry/2") == b"y"


@pytest.mark.parametrize("use", ["read", "verify", "settle"])
def test_a_transfer_that_changes_a_file_condemns_nothing(place: BucketPlace, changing: FaultyProxy, use: str) -> None:
    artifact_of_every_kind(place.store())
    store = place.store()
    uses: dict[str, Callable[[Artifact], object]] = {
        "read": lambda artifact: artifact.path("rows.parquet").read_bytes(),
        "verify": lambda artifact: artifact.verify(),
        "settle": lambda artifact: artifact.settle("rows.parquet"),
    }
    changing.set(changes(r"rows\.parquet", most=3))
    assert uses[use](store.get("tokens", KEY)) in (
        [],
        False,
        store.get("tokens", KEY).path("rows.parquet").read_bytes(),
    )
    changing.set(changes(r"rows\.parquet", most=None))
    with refused(TransientError, "rows.parquet", where="tokens/"):
        uses[use](place.store().get("tokens", KEY))
    assert not [path for path in store.backend.list("") if "condemned" in path]


def test_a_file_that_changed_in_the_bucket_is_condemned_by_who_is_told_of_it(place: BucketPlace) -> None:
    artifact = artifact_of_every_kind(place.store())
    data = bytearray(artifact.path("rows.parquet").read_bytes())
    data[400] ^= 1
    place.overwrite(f"{artifact.prefix}/rows.parquet", bytes(data))
    # The writer's own copy is still whole; whoever streams meets the bucket's.
    assert not artifact.settle("more.safetensors")
    assert artifact.settle("rows.parquet")
    assert place.store().find("tokens", KEY) is None


def test_a_manifest_that_changed_on_the_way_to_a_stream_is_asked_for_again(
    place: BucketPlace, changing: FaultyProxy
) -> None:
    artifact = artifact_of_every_kind(place.store())
    changing.set(changes(r"/manifest\.", most=2))
    assert open_files(artifact.location()).parquet("rows.parquet").num_row_groups == 3


# --- refusals -------------------------------------------------------------------------------------------------------


@contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """An endpoint that answers every request with one error, and quotes the caller's key as some servers do."""

    class Refuse(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            quoted = CANARIES["AWS_ACCESS_KEY_ID"]
            body = f"<Error><Code>{code}</Code><Message>no {quoted}</Message><Key>{quoted}</Key></Error>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))


REFUSALS = [
    (400, "ExpiredToken", ArtifactError, ["credentials"], "AWS_SESSION_TOKEN"),
    (403, "InvalidAccessKeyId", ArtifactError, ["credentials", "InvalidAccessKeyId"], "AWS_ACCESS_KEY_ID"),
    (403, "SignatureDoesNotMatch", ArtifactError, ["credentials", "SignatureDoesNotMatch"], "AWS_SECRET_ACCESS_KEY"),
    (403, "AccessDenied", ArtifactError, ["PutObject", "AccessDenied"], "policy"),
    (403, "QuotaExceeded", StoreFull, ["'some-bucket'", "QuotaExceeded"], "quota"),
    (507, "XMinioStorageFull", StoreFull, ["'some-bucket'", "XMinioStorageFull"], "quota"),
    (404, "NoSuchBucket", ArtifactError, ["'some-bucket'"], "Make"),
    (503, "SlowDown", TransientError, ["1 times", "SlowDown"], "again"),
    (500, "InternalError", TransientError, ["1 times", "InternalError"], "again"),
    (501, "NotImplemented", ArtifactError, ["If-None-Match"], "MinIO"),
    (400, "SomethingNew", ArtifactError, ["PutObject", "SomethingNew"], "--debug"),
]


@pytest.mark.parametrize(("status", "code", "kind", "named", "advice"), REFUSALS, ids=[item[1] for item in REFUSALS])
def test_a_refusal_names_endpoint_and_remedy_and_no_credentials(
    canaries: None,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    kind: type[DeepspecError],
    named: list[str],
    advice: str,
) -> None:
    with refusing(status, code) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with refused(kind, *named, endpoint, where="DEEPSPEC_STORE s3://some-bucket/store") as caught:
            open_store("s3://some-bucket/store").backend.create("registry/1", b"x")
    assert advice in str(caught.value.remedy)
    told = "".join(traceback.format_exception(caught.value))
    assert not any(canary in told for canary in CANARIES.values())


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "RequestExpired", "AccessDenied", "SignatureDoesNotMatch"])
@pytest.mark.parametrize("hours", [-1, 3])
def test_clocks_that_differ_are_no_missing_permission(
    canaries: None, monkeypatch: pytest.MonkeyPatch, code: str, hours: int
) -> None:
    shifted = SimpleNamespace(time=lambda: time.time() + hours * 3600)
    monkeypatch.setattr(s3_errors, "time", shifted)
    with refusing(403, code) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        backend = open_store("s3://some-bucket/store").backend
        for ask in (lambda: backend.create("registry/1", b"x"), backend.clock, lambda: backend.list("")):
            with refused(ArtifactError, "clocks", f"{abs(hours) * 60} minutes", where="s3://some-bucket") as caught:
                ask()
            assert "NTP" in str(caught.value.remedy)


@pytest.mark.full
def test_what_a_real_server_refuses_is_named_the_same_way(
    radosgw: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway = radosgw.gateway
    assert gateway is not None
    server = replace(radosgw.user("refused"), bucket="refused").make_bucket()
    server.enter(monkeypatch)
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    backend = open_store("s3://refused/store").backend
    assert all(backend.create(f"registry/{number}", b"x") for number in range(3))
    gateway.admin("quota", "set", "--quota-scope=bucket", "--max-objects=1", "--uid=refused")
    gateway.admin("quota", "enable", "--quota-scope=bucket", "--uid=refused")
    with refused(StoreFull, "QuotaExceeded"):
        backend.create("registry/full", b"x")
    gateway.admin("quota", "disable", "--quota-scope=bucket", "--uid=refused")
    gateway.admin("user", "suspend", "--uid=refused")
    with refused(ArtifactError, "UserSuspended"):
        backend.create("registry/suspended", b"x")
    gateway.admin("user", "enable", "--uid=refused")
    assert backend.create("registry/again", b"x")


def test_an_endpoint_that_does_not_answer_is_named_without_what_its_address_hides(
    canaries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:canary-password@127.0.0.1:{port}")
    with refused(TransientError, f"http://127.0.0.1:{port}") as caught:
        open_store("s3://some-bucket").find("tokens", KEY)
    assert "AWS_ENDPOINT_URL" in str(caught.value.remedy)
    assert "canary" not in str(caught.value)


def test_a_bucket_hands_pages_out_as_pages(moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    moto.enter(monkeypatch)
    backend = open_store(f"s3://{moto.bucket}/pages", cache=tmp_path).backend
    types = {"index.html": "text/html; charset=utf-8", "data.json": "application/json"}
    for name, expected in types.items():
        backend.put(name, b"{}")
        answer = s3.client().head_object(Bucket=moto.bucket, Key=f"pages/{name}")
        assert answer["ContentType"] == expected


def test_a_missing_bucket_is_named(moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    moto.enter(monkeypatch)
    store = open_store("s3://not-there/store", cache=tmp_path)
    for use in (store.backend.clock, lambda: store.find("tokens", KEY), lambda: store.backend.create("a", b"")):
        with refused(ArtifactError, "'not-there'"):
            use()


def test_missing_credentials_are_named(moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    moto.enter(monkeypatch)
    for name in (*CANARIES, "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with refused(ArtifactError, "no credentials", where="s3://some-bucket") as caught:
        open_store("s3://some-bucket", cache=tmp_path).find("tokens", KEY)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value.remedy)


class Endless(BaseHTTPRequestHandler):
    """Answers every question with a body that says no length and does not end."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("ETag", '"0"')
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(ConnectionError):
            while True:
                self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def log_message(self, *_: object) -> None:
        pass


def test_a_record_that_says_no_length_is_read_within_bounds(canaries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            with refused(RecordTooLarge, f"{3 << 20:,}", where="s3://some-bucket/registry/a.json"):
                open_store("s3://some-bucket").backend.read("registry/a.json", max_bytes=3 << 20)
        finally:
            server.shutdown()
            serving.join()


def test_a_manifest_that_is_too_large_is_not_streamed(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = put(place.store(), ingredients())
    monkeypatch.setattr(files, "MAX_RECORD_BYTES", 100)
    with refused(RecordTooLarge, "100", where=manifest_path(artifact)):
        open_files(artifact.location())


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///x", "s3://A-Bucket", "s3://ab", "s3://key:canary@bucket/x", "s3://bucket/../x"]
)
def test_a_malformed_url_is_refused_without_being_repeated(url: str) -> None:
    with refused(RecipeError, "s3://bucket/prefix") as caught:
        open_store(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("address", ["localhost:9000", "http://", "ftp://host", "http://host:port", "nonsense"])
def test_a_malformed_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with refused(RecipeError, where="AWS_ENDPOINT_URL"):
        open_store("s3://bucket")
