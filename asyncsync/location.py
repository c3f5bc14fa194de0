"""Where bytes live: `s3://bucket/run`, `file:///data`, a path -> Location. No I/O."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlencode

from .errors import ConfigError, quote

__all__ = ["Location"]

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_SECRET = re.compile(
    r"secret|token|passw|credential|delegation|signature|access_?key|api_?key|sig$|account_key",
    re.IGNORECASE,
)
_OPTIONS = {
    "s3": {"endpoint_url", "region", "profile", "addressing"},
    "gs": {"endpoint_url"},
}


@dataclass(frozen=True, slots=True)
class Location:
    """A place that can hold trees.

    Attributes:
        scheme: `file` for everything on a mounted file system.
        authority: bucket, host or namespace; empty for `file`.
        path: for `file` absolute; otherwise without slashes at either end.
        options: what stood after `?`, for the schemes that take some.
    """

    scheme: str
    authority: str
    path: str
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str | os.PathLike[str] | Location) -> Location:
        """Read a URL, a path, `~` or a relative path.

        Raises:
            ConfigError: empty, malformed, or it carries keys or secrets; the text is not echoed
                in that last case.
        """
        if isinstance(text, Location):
            return text
        text = os.fsdecode(text)
        if not text or "\0" in text:
            raise ConfigError("a location is a path or a URL; this one is empty or holds a NUL")
        if text.startswith("file:/") and not text.startswith("file://"):
            text = "file://" + text.removeprefix("file:")  # RFC 8089 allows both
        if mistyped := _ONE_SLASH.match(text):  # else it would be a directory where we are
            scheme = mistyped[1]
            raise ConfigError(
                f"a location begins with {scheme}://, with two slashes; write ./{scheme}:/... for "
                "a directory of that name"
            )
        match = _URL.fullmatch(text)
        if match is None:
            return cls("file", "", _absolute(text))
        return cls._from_url(match["scheme"].lower(), match["rest"])

    @classmethod
    def _from_url(cls, scheme: str, rest: str) -> Location:
        body, options = _split_options(scheme, rest)
        authority, _, path = body.partition("/")
        if "@" in authority:
            raise ConfigError(
                f"this {scheme}:// location carries a user or a key before '@'; leave it out and "
                "let the environment or a profile hold the credentials"
            )
        if scheme == "file":
            if authority not in ("", "localhost"):
                raise ConfigError(
                    f"file://{quote(authority)}/... names a host; write file:///path instead"
                )
            return cls("file", "", _absolute("/" + unquote(path)))
        if not authority:
            raise ConfigError(f"{scheme}:// needs a name after the slashes: {scheme}://NAME/path")
        parts = [part for part in path.split("/") if part]
        if any(part in (".", "..") for part in parts):
            raise ConfigError(f"'.' and '..' have no meaning in {scheme}:// locations")
        return cls(scheme, authority, "/".join(parts), options)

    @property
    def name(self) -> str:
        """The last component; empty at a root."""
        return self.path.rpartition("/")[2]

    def __truediv__(self, relative: str) -> Location:
        path = f"{self.path.rstrip('/')}/{relative}" if self.path else relative
        return Location(self.scheme, self.authority, path, self.options)

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.path
        tail = urlencode(self.options, safe=":/")
        url = f"{self.scheme}://{self.authority}" + (f"/{self.path}" if self.path else "")
        return f"{url}?{tail}" if tail else url


def _absolute(path: str) -> str:
    expanded = os.path.expanduser(path)
    if expanded == path and path.startswith("~"):
        raise ConfigError(
            f"{quote(path)} means nothing: no such user or no home; set HOME or write the whole "
            "path (./~ for a name that begins so)"
        )
    try:
        return os.path.abspath(expanded)  # lexical: no symlink is followed here
    except FileNotFoundError:
        raise ConfigError(
            "the current directory does not exist any more, so a relative path means nothing; "
            "change to one that does"
        ) from None


def _split_options(scheme: str, rest: str) -> tuple[str, dict[str, str]]:
    """Take `?key=value` off the end. Object keys may hold `?`, so only known keys count."""
    body, mark, query = rest.rpartition("?")
    if not mark or scheme == "file":
        if mark:
            _refuse_secrets(scheme, query)
        return rest, {}
    _refuse_secrets(scheme, query)
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = _OPTIONS.get(scheme, set())
    if options and set(options) <= known:
        return body, options
    if known and "=" in query:
        raise ConfigError(
            f"{scheme}:// takes the options {', '.join(sorted(known))}; not "
            f"{', '.join(sorted(set(options) - known))}"
        )
    return rest, {}


def _refuse_secrets(scheme: str, query: str) -> None:
    pairs = parse_qsl(query, keep_blank_values=True)
    if any(_SECRET.search(key) or "@" in value or "?" in value for key, value in pairs):
        raise ConfigError(
            f"this {scheme}:// location carries a key or a token after '?'; leave it out and let "
            "the environment or a profile hold the credentials"
        )
