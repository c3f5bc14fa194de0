"""Everything that knows aiobotocore: loaded in a thread, its errors turned into ours.

The SDK finds the region and the endpoint where `settings` does not, and it writes and reads the
documents of the requests that are neither bulk nor listings. It neither signs nor sends: a request
that it has built is handed to `Exchange`.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import cache
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import (
    AccessDeniedError,
    AsyncSyncError,
    ConfigError,
    StalledError,
    TransientError,
    quote,
)
from ..http import Answer
from .answers import Fault, error_of
from .settings import DEFAULT_REGION

if TYPE_CHECKING:
    from aiobotocore.session import AioSession
    from botocore.session import Session

__all__ = [
    "Exchange",
    "Loaded",
    "base_url",
    "load",
    "new_session",
    "open_client",
    "sdk_errors",
    "send_through",
]

_ADDRESSING = ("auto", "path", "virtual")

Exchange = Callable[[str, str, Mapping[str, str], bytes], Awaitable[Answer]]
"""Signs and sends (method, URL, headers, body) and returns the answer, or raises our error."""


class Loaded(NamedTuple):
    """The SDK with everything in memory that it would read from disk otherwise."""

    session: AioSession
    region: str
    ca_file: str | None
    addressing: str
    endpoint_url: str | None


def load(options: Mapping[str, str]) -> Loaded:
    """Import the SDK and read models and configuration. Takes 0.3 s: runs in a thread.

    Raises:
        ConfigError: an option or the configuration makes no sense.
    """
    addressing = options.get("addressing", "auto")
    if addressing not in _ADDRESSING:
        raise ConfigError(f"addressing is {', '.join(_ADDRESSING)}; not {quote(addressing)}")
    from aiobotocore.session import AioSession  # noqa: PLC0415 - heavy

    session = AioSession(profile=options.get("profile"))
    region = options.get("region") or os.environ.get("AWS_REGION")
    region = region or session.get_config_variable("region") or DEFAULT_REGION
    ca_file = session.get_config_variable("ca_bundle")
    session.get_scoped_config()
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    session.warm_up_loader_caches("s3")
    return Loaded(session, region, ca_file, addressing, options.get("endpoint_url"))


@cache
def _loader(data_path: str | None) -> Any:
    """One for all stores of the process: the models are most of what loading costs.

    botocore's own keeps the order of what it reads in OrderedDicts, and looks into the directory of
    every service for every kind of model, to know which services there are.

    Args:
        data_path: directories with models besides botocore's, as AWS_DATA_PATH lists them.
    """
    from botocore.loaders import JSONFileLoader, Loader  # noqa: PLC0415 - heavy, loaded by now

    class Files(JSONFileLoader):  # type: ignore[misc] # botocore has no types
        def load_file(self, file_path: str) -> Any:
            for ending, opened in ((".json", open), (".json.gz", gzip.open)):
                with suppress(FileNotFoundError), opened(file_path + ending, "rb") as file:
                    return json.loads(file.read())
            return None

    class Models(Loader):  # type: ignore[misc] # the same
        FILE_LOADER_CLASS = Files

        def list_available_services(self, type_name: str) -> list[str]:
            del type_name  # what there is of a service turns out when it is loaded
            names: set[str] = set()
            for path in filter(os.path.isdir, self.search_paths):
                names.update(os.listdir(path))
            return sorted(names)

    paths = data_path.split(os.pathsep) if data_path is not None else []
    return Models([os.path.expanduser(os.path.expandvars(path)) for path in paths])


def new_session(profile: str | None) -> Session:
    """A session that works without an event loop, for a thread."""
    import botocore.session  # noqa: PLC0415 - heavy

    session = botocore.session.Session(profile=profile)
    if region := os.environ.get("AWS_REGION"):  # botocore reads AWS_DEFAULT_REGION only
        session.set_config_variable("region", region)
    return session


async def open_client(loaded: Loaded, stack: AsyncExitStack) -> Any:
    """An S3 client that neither signs nor tries again; `stack` closes it."""
    import botocore  # noqa: PLC0415 - heavy, and loaded by now
    from aiobotocore.config import AioConfig  # noqa: PLC0415

    config = AioConfig(
        signature_version=botocore.UNSIGNED,
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": loaded.addressing},
    )
    creating = loaded.session.create_client(
        "s3",
        region_name=loaded.region,
        endpoint_url=loaded.endpoint_url,
        config=config,
        verify=False,  # it opens no connection by itself
    )
    return await stack.enter_async_context(creating)


async def base_url(client: Any, bucket: str) -> str:
    """What comes before the key in the address of an object, as the SDK decides it.

    Asked by a request that is not sent: addresses made for signing ahead of time differ.
    """
    seen: list[str] = []

    async def answer(request: Any, **_: object) -> Any:
        seen.append(request.url)
        return _response(request.url, Answer(200, {}, b""))

    client.meta.events.register("before-send.s3", answer)
    await client.head_object(Bucket=bucket, Key="k")
    client.meta.events.unregister("before-send.s3", answer)
    scheme, _, rest = seen[0].removesuffix("k").partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}{slash}{path}"


def send_through(client: Any, exchange: Exchange) -> None:
    """From now on every request of `client` is signed and sent by `exchange`."""

    async def before_send(request: Any, **_: object) -> Any:
        headers = {name: _text(value) for name, value in request.headers.items()}
        headers.pop("Content-Length", None)
        answer = await exchange(request.method, request.url, headers, request.body or b"")
        return _response(request.url, answer)

    client.meta.events.register("before-send.s3", before_send)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class _Body:
    """A body that is there already, with the one method that the SDK calls."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        return self._data


def _response(url: str, answer: Answer) -> Any:
    from aiobotocore.awsrequest import AioAWSResponse  # noqa: PLC0415 - heavy, loaded by now

    headers = {name.lower(): value for name, value in answer.headers.items()}
    body = bytes(answer.body).lstrip()  # white space that kept the connection open is no XML
    return AioAWSResponse(url, answer.status, headers, _Body(body))


@contextmanager
def sdk_errors(what: str) -> Iterator[None]:
    """Re-raise what the SDK raises as ours; errors of ours pass."""
    try:
        yield
    except AsyncSyncError:
        raise
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"s3:// needs {exc.name}; install it with pip install 'asyncsync[s3]'"
        ) from exc
    except Exception as exc:
        ours = _ours(what, exc)
        if ours is None:
            raise
        raise ours from None  # theirs may show an endpoint with its password


def _ours(what: str, exc: Exception) -> AsyncSyncError | None:
    from botocore import exceptions as foreign  # noqa: PLC0415 - heavy, loaded by now
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    if isinstance(exc, foreign.ClientError):
        return error_of(what, _fault(exc), now=0.0)
    if isinstance(exc, ResponseParserError):
        return TransientError(f"{what}: the answer is not a whole document")
    if untold := _untold(exc):
        kind, text = untold
        return kind(f"{what}: {text}")
    text = " ".join(str(exc).split())[:300]
    if isinstance(exc, foreign.ParamValidationError) and "bucket name" in text:
        return ConfigError(
            f"{what}: Invalid bucket name; it has 3 to 63 small letters, digits, dots and dashes"
        )
    kinds: dict[type[Exception], type[AsyncSyncError]] = {
        foreign.ReadTimeoutError: StalledError,
        foreign.ConnectTimeoutError: StalledError,
        foreign.HTTPClientError: TransientError,
        foreign.CredentialRetrievalError: AccessDeniedError,
        foreign.MetadataRetrievalError: AccessDeniedError,
        foreign.PartialCredentialsError: AccessDeniedError,
        foreign.NoCredentialsError: AccessDeniedError,
        foreign.SSOError: AccessDeniedError,
        foreign.ProfileNotFound: ConfigError,
        foreign.ParamValidationError: ConfigError,
        foreign.BotoCoreError: ConfigError,
        FileNotFoundError: ConfigError,  # of what the configuration names
        PermissionError: ConfigError,
    }
    for kind in type(exc).__mro__:
        if kind in kinds:
            return kinds[kind](f"{what}: {quote(text)}")
    return None


def _untold(exc: Exception) -> tuple[type[AsyncSyncError], str] | None:
    """The error, in our words, for one whose own text may hold a secret."""
    from botocore import exceptions as foreign  # noqa: PLC0415 - heavy, loaded by now

    of_process = isinstance(exc, foreign.CredentialRetrievalError) and (
        exc.kwargs.get("provider") == "custom-process"
    )
    if of_process or isinstance(exc, JSONDecodeError | UnicodeDecodeError):
        return AccessDeniedError, (
            "the program that credential_process names gave none; run it by hand to see why"
        )
    of_botocore = isinstance(exc, foreign.BotoCoreError)
    if str(exc).startswith("Custom endpoint") or (isinstance(exc, ValueError) and not of_botocore):
        return ConfigError, (
            "the endpoint is not the address of a server, such as https://host:9000; check "
            "endpoint_url and AWS_ENDPOINT_URL"
        )
    return None


def _fault(exc: Any) -> Fault:
    error, meta = exc.response.get("Error", {}), exc.response.get("ResponseMetadata", {})
    return Fault(
        meta.get("HTTPStatusCode") or 500,
        error.get("Code") or "",
        error.get("Message") or "",
        error.get("Region") or "",
        meta.get("HTTPHeaders") or {},
    )
