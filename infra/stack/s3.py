"""The S3 server: Ceph's gateway, with one monitor and one storage daemon behind it.

Three plain processes without containers, a manager or root. The gateway checks secrets and bodies, and a create-only
PUT (`If-None-Match: *`) has exactly one winner, on which the artifact store is built.
"""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from deepspec.errors import LaunchError
from infra.stack.service import Command, NotHealthy, Service, Stack, check_port, run_once
from infra.stack.settings import HOST
from infra.stack.variables import BUCKET, REGION

# Made before the gateway starts, which would make them one by one, seconds each.
_POOLS = (".rgw.root", *(f"default.rgw.{name}" for name in (
    "log", "control", "meta", "buckets.index", "buckets.data", "buckets.non-ec"
)))  # fmt: skip

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = v2:{host}:{monitor_port}
keyring = {folder}/keyring
public_addr = {host}
cluster_addr = {host}
run_dir = {folder}/run
log_file =
admin_socket =
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_pool_default_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = {store}
osd_memory_target = 1073741824
memstore_device_bytes = 4294967296
bluestore_block_size = 68719476736
osd_crush_update_on_start = false
osd_class_update_on_start = false
osd_fast_shutdown = false
[client.rgw]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint={host}:{port} tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_gc_obj_min_wait = 5
rgw_gc_processor_period = 5
"""


def client(stack: Stack) -> Any:
    """A boto3 client of the gateway that gives up soon."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=stack.url("radosgw"),
        aws_access_key_id=stack.secret("s3-access-key"),
        aws_secret_access_key=stack.secret("s3-secret-key"),
        region_name=REGION,
        config=Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}),
    )


def _folder(stack: Stack) -> Path:
    return stack.folder / "s3"


def _ceph(stack: Stack, program: str, *arguments: str) -> Command:
    path = shutil.which(program)
    if path is None:
        raise LaunchError(
            f"{program} is not installed.",
            remedy="`bash infra/install_services.sh services` installs what the stack needs.",
        )
    return Command([path, *arguments], {"CEPH_CONF": str(_folder(stack) / "ceph.conf")}, _folder(stack))


def _monitor(stack: Stack) -> Command:
    folder = _folder(stack)
    made = stack.folder / "s3.made"
    if not made.is_file():
        if folder.is_dir():
            shutil.rmtree(folder)  # half made: an earlier start was interrupted
        for name in ("mon", "osd", "rgw", "run"):
            (folder / name).mkdir(mode=0o700, parents=True)
        _write_json(
            folder / "made.json", {"fsid": str(uuid.uuid4()), "osd": str(uuid.uuid4()), "store": stack.s3_store}
        )
    made_with = _made_with(stack)
    if made_with["store"] != stack.s3_store:
        raise LaunchError(
            f"The S3 server's data were made with {made_with['store']}, not {stack.s3_store}.",
            where=str(folder),
            remedy=f"Set DEEPSPEC_STACK_S3={made_with['store']}, or another DEEPSPEC_STACK_DIR.",
        )
    configuration = _CONFIGURATION.format(
        folder=folder,
        fsid=made_with["fsid"],
        store=stack.s3_store,
        host=HOST,
        monitor_port=stack.ports["ceph-mon"],
        port=stack.ports["radosgw"],
    )
    (folder / "ceph.conf").write_text(configuration, encoding="utf-8")

    def run(program: str, *arguments: str) -> None:
        run_once(stack, "ceph-mon", _ceph(stack, program, *arguments))

    # The map holds the monitor's own address: made for each start, because the port may have changed.
    address = f"[v2:{HOST}:{stack.ports['ceph-mon']}]"
    run(
        "monmaptool",
        "--create",
        "--clobber",
        "--fsid",
        made_with["fsid"],
        "--addv",
        "a",
        address,
        str(folder / "monmap"),
    )
    if made.is_file():
        run("ceph-mon", "-i", "a", "--inject-monmap", str(folder / "monmap"))
    else:
        _make_keys(stack, folder / "keyring")
        options = ("--monmap", str(folder / "monmap"), "--keyring", str(folder / "keyring"))
        run("ceph-mon", "--mkfs", "-i", "a", *options)
        made.touch()
    return _ceph(stack, "ceph-mon", "-f", "-i", "a")


def _make_keys(stack: Stack, keyring: Path) -> None:
    keys = {
        "mon.": {"mon": "allow *"},
        "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
        "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
        "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
    }
    run_once(stack, "ceph-mon", _ceph(stack, "ceph-authtool", str(keyring), "--create-keyring"))
    for name, allowed in keys.items():
        capabilities = [part for what, value in allowed.items() for part in ("--cap", what, value)]
        command = _ceph(stack, "ceph-authtool", str(keyring), "--gen-key", "-n", name, *capabilities)
        run_once(stack, "ceph-mon", command)
    keyring.chmod(0o600)


def _storage(stack: Stack) -> Command:
    made = _folder(stack) / "osd.made"
    if not made.is_file():
        osd = _made_with(stack)["osd"]
        lines = [f"osd new {osd} 0"]
        lines += ["osd crush add-bucket h host", "osd crush move h root=default", "osd crush add osd.0 1 host=h"]
        for pool in _POOLS:
            lines += [f"osd pool create {pool} 4", f"osd pool application enable {pool} rgw"]
        # One process for all of them; each alone would take half a second.
        run_once(stack, "ceph-osd", _ceph(stack, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd))
        run_once(stack, "ceph-osd", _ceph(stack, "ceph"), given="\n".join(lines) + "\n")
        made.touch()
    return _ceph(stack, "ceph-osd", "-f", "-i", "0")


def _gateway(stack: Stack) -> Command:
    if not stack.has_secret("s3-secret-key"):
        # It chooses the keys itself, so that they stand on no command line.
        arguments = ("-n", "client.rgw", "user", "create", "--uid=deepspec", "--display-name=deepspec")
        answer = run_once(stack, "radosgw", _ceph(stack, "radosgw-admin", *arguments))
        key = json.loads(answer)["keys"][0]
        stack.keep_secret("s3-access-key", key["access_key"])
        stack.keep_secret("s3-secret-key", key["secret_key"])
    return _ceph(stack, "radosgw", "-f", "-n", "client.rgw")


def _made_with(stack: Stack) -> dict[str, str]:
    found: dict[str, str] = json.loads((_folder(stack) / "made.json").read_text(encoding="utf-8"))
    return found


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def _check_monitor(stack: Stack) -> None:
    check_port(stack.ports["ceph-mon"])


def _check_storage(stack: Stack) -> None:
    """The storage daemon has no port to ask: a request to the gateway shows whether objects are kept."""


def _check_gateway(stack: Stack) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    check_port(stack.ports["radosgw"])
    try:
        client(stack).list_buckets()  # read from the storage daemon, not from a cache
    except (BotoCoreError, ClientError) as error:
        raise NotHealthy(str(error)) from error


def _make_bucket(stack: Stack) -> None:
    s3 = client(stack)
    if BUCKET not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=BUCKET)


S3_SERVICES = (
    Service("ceph-mon", _monitor, _check_monitor),
    Service("ceph-osd", _storage, _check_storage, after=("ceph-mon",)),
    Service("radosgw", _gateway, _check_gateway, after=("ceph-osd",), settle=_make_bucket),
)
