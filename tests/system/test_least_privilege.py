"""The policies in docs/policies allow what they are for, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.session
import pytest
import requests

from asyncsync import StorageSyncer
from asyncsync.errors import AccessDeniedError
from asyncsync.storage import Group

from ..servers import Server, free_port, program, s3_server, serving
from .trees import content, make

POLICIES = Path(__file__).parents[2] / "docs" / "policies"
BUCKET, PREFIX = "the-bucket", "exp/run"
FILES = {"weights": bytes(range(256)) * 70_000, "config": b"{}"}  # the first goes up in parts
ALLOWED = {
    "s3-reader": {"s3:GetObject", "s3:ListBucket"},
    "s3-writer": {
        "s3:AbortMultipartUpload",
        "s3:DeleteObject",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:PutObject",
    },
}


def policy(name: str) -> str:
    text = (POLICIES / f"{name}.json").read_text()
    return text.replace("BUCKET", BUCKET).replace("PREFIX", PREFIX)


@pytest.mark.parametrize("name", ALLOWED)
def test_a_policy_names_what_is_needed_below_a_prefix_and_nothing_else(name: str) -> None:
    objects, listings = json.loads(policy(name))["Statement"]

    assert {*objects["Action"], *listings["Action"]} == ALLOWED[name]
    assert objects["Resource"] == f"arn:aws:s3:::{BUCKET}/{PREFIX}/*"
    assert listings["Resource"] == f"arn:aws:s3:::{BUCKET}"
    assert listings["Condition"] == {"StringLike": {"s3:prefix": f"{PREFIX}/*"}}


class Accounts:
    """A server that asks each request who it is from, and a user for each policy."""

    def __init__(self, server: Server) -> None:
        self.server, self._keys = server, dict[str, dict[str, str]]()
        self._client("s3").create_bucket(Bucket=BUCKET)
        iam = self._client("iam")
        for name in ALLOWED:
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy(name))
            key = iam.create_access_key(UserName=name)["AccessKey"]
            self._keys[name] = {
                "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            }
        self._post("recorder/start-recording")
        self._post("reset-auth", b"0")

    def be(self, name: str, monkeypatch: pytest.MonkeyPatch) -> StorageSyncer:
        """A syncer of that user."""
        for key, value in {**self.server.environ, **self._keys[name]}.items():
            monkeypatch.setenv(key, value)
        return StorageSyncer()

    def listed(self) -> set[str]:
        """The prefixes of all listings since the last time, also of uploads."""
        url = f"{self.server.url}/moto-api/recorder/download-recording"
        text = requests.get(url, timeout=30).text
        self._post("recorder/reset-recording")
        prefixes, at = set[str](), 0
        while at < len(text):
            line, at = json.JSONDecoder().raw_decode(text, at)
            at += len(text[at:]) - len(text[at:].lstrip())
            address = urlsplit(line["url"])
            query = parse_qs(address.query, keep_blank_values=True)
            if address.path.strip("/") == BUCKET and line["method"] == "GET":
                prefixes.add(query.get("prefix", [""])[0])
        return prefixes

    def _client(self, service: str) -> Any:
        return botocore.session.Session().create_client(
            service,
            region_name="us-east-1",
            endpoint_url=self.server.url,
            aws_access_key_id="root",
            aws_secret_access_key="root",
        )

    def _post(self, what: str, data: bytes = b"") -> None:
        url = f"{self.server.url}/moto-api/{what}"
        requests.post(url, data=data, timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Accounts]:
    folder, port = tmp_path_factory.mktemp("accounts"), free_port()
    command = [program("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port, folder):
        yield Accounts(s3_server(f"http://127.0.0.1:{port}"))


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_writer_does_everything_below_its_prefix_and_nothing_elsewhere(
    accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, place = make(tmp_path / "source", FILES), f"s3://{BUCKET}/{PREFIX}"
    async with accounts.be("s3-writer", monkeypatch) as syncer:
        await syncer.sync_up(source, f"{place}/ckpt", step=1)
        await syncer.sync_up(source, f"{place}/rolling", kind="rolling")
        group = Group(id="run", rank=0, size=1)
        await syncer.sync_up(source, f"{place}/group", group=group, step=2)
        (source / "config").unlink()
        replaced = await syncer.sync_up(source, f"{place}/ckpt", replace=True, step=3)
        await syncer.sync_up(source, f"{place}/rolling", kind="rolling")
        await syncer.verify(f"{place}/ckpt")
        report = await syncer.probe(f"{place}/ckpt")
        await syncer.clean(place)
        await syncer.restore(place, tmp_path / "back")
        for name in ("ckpt", "rolling", "group"):
            await syncer.delete(f"{place}/{name}")
        listed = accounts.listed()
        with pytest.raises(AccessDeniedError, match="allow it in the policy"):
            await syncer.sync_up(source, f"s3://{BUCKET}/exp/other/ckpt")

    assert replaced.files == 1
    assert report.capabilities.exclusive
    assert content(tmp_path / "back") == content(source)
    assert listed
    assert {name for name in listed if not name.startswith(f"{PREFIX}/")} <= {""}


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_reader_reads_and_writes_nothing(
    accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, there = make(tmp_path / "source", FILES), f"s3://{BUCKET}/{PREFIX}/read"
    async with accounts.be("s3-writer", monkeypatch) as syncer:
        await syncer.sync_up(source, there)
    async with accounts.be("s3-reader", monkeypatch) as syncer:
        await syncer.restore(f"s3://{BUCKET}/{PREFIX}", tmp_path / "back")
        found = [one async for one in syncer.commits(f"s3://{BUCKET}/{PREFIX}")]
        for wanted in (syncer.delete(there), syncer.sync_up(source, f"{there}-2")):
            with pytest.raises(AccessDeniedError, match="allow it in the policy"):
                await wanted

    assert content(tmp_path / "back") == FILES
    assert [commit.location for commit in found] == [there]
