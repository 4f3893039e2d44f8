"""Object stores: how one is addressed and opened (S3 and servers that speak its language).

Belongs here: the address ``s3://bucket/prefix``, keys, retries, and keeping keys out of messages. Does not belong here:
what is kept there (lake_place.py, videos.py, checkpoints.py).

Keys come from the environment only: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where there is one,
AWS_SESSION_TOKEN.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote_plus, urlsplit

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_.=-]+(/[A-Za-z0-9_.=-]+)*")
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
SECRETS = (*KEYS, "AWS_SESSION_TOKEN", "PGPASSWORD")
SHORTEST_SECRET = 4
"""A secret of fewer characters would make gaps in every message, and protect nothing."""


class ObjectStoreError(OSError):
    """An object store cannot be reached, refuses us, or an address is none; says what to do."""


@dataclass(frozen=True)
class ObjectStoreAccess:
    """How an object store is reached. endpoint_url: of other servers than Amazon's. patience: seconds for which a
    store that answers 5xx, or not at all, is asked again."""

    endpoint_url: str | None = None
    region: str = "us-east-1"
    patience: float = 60.0


@dataclass(frozen=True)
class ObjectLocation:
    """A folder, so to speak, in an object store: ``s3://bucket/prefix``."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> ObjectLocation:
        """ValueError for what is no such address."""
        scheme, _, rest = url.partition("://")
        bucket, _, prefix = rest.rstrip("/").partition("/")
        plain = _PREFIX.fullmatch(prefix) and not {".", ".."} & set(prefix.split("/"))
        if scheme != "s3" or not _BUCKET.fullmatch(bucket) or not plain:
            raise ValueError(
                "must be a folder or s3://bucket/prefix (the prefix made of letters, digits, _ . = - and /, not empty)"
            )
        return cls(bucket, prefix)

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def __str__(self) -> str:
        return self.url


def is_object_url(location: str) -> bool:
    """Whether an address names an object store rather than a folder."""
    return "://" in location


def keys() -> tuple[str, str, str | None]:
    """Key id, secret and session token from the environment. Raises ObjectStoreError, naming what is not set."""
    missing = [name for name in KEYS if not os.environ.get(name)]
    if missing:
        raise ObjectStoreError(f"the object store needs {' and '.join(missing)} in the environment")
    return os.environ[KEYS[0]], os.environ[KEYS[1]], os.environ.get("AWS_SESSION_TOKEN")


def scrubbed(message: str) -> str:
    """A message without the secrets of this environment, however they are written in a URL."""
    for secret in _secrets():
        message = message.replace(secret, "***").replace(quote_plus(secret), "***")
    return message


def _secrets() -> Iterator[str]:
    found = (os.environ.get(name, "") for name in SECRETS)
    yield from sorted((secret for secret in found if len(secret) >= SHORTEST_SECRET), key=len, reverse=True)


def open_store(location: ObjectLocation, access: ObjectStoreAccess) -> S3Store:
    """A client of everything below a location. Nothing is asked of the store yet. Raises ObjectStoreError."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise ObjectStoreError(
            "an object store needs the package obstore: pip install 'vpo-platform[cluster]'"
        ) from error
    key_id, secret, token = keys()
    options: S3Config = {"access_key_id": key_id, "secret_access_key": secret, "region": access.region}
    if token:
        options["session_token"] = token
    if access.endpoint_url:
        options["endpoint"] = access.endpoint_url
    return S3Store(
        location.bucket,
        prefix=location.prefix,
        config=options,
        virtual_hosted_style_request=access.endpoint_url is None,
        client_options={"allow_http": (access.endpoint_url or "").startswith("http://"), "timeout": "60s"},
        retry_config={
            "max_retries": 100,
            "retry_timeout": datetime.timedelta(seconds=access.patience),
            "backoff": {
                "init_backoff": datetime.timedelta(milliseconds=100),
                "max_backoff": datetime.timedelta(seconds=5),
                "base": 2,
            },
        },
    )


def duckdb_secret(location: ObjectLocation, access: ObjectStoreAccess) -> tuple[str, list[str]]:
    """The statement that lets DuckDB into a location, in place of the last one of a connection, and its parameters.
    Raises ObjectStoreError."""
    key_id, secret, token = keys()
    parts = urlsplit(access.endpoint_url or "https://s3.amazonaws.com")
    options = {"KEY_ID": key_id, "SECRET": secret, "REGION": access.region, "SCOPE": f"{location.url}/"}
    if token:
        options["SESSION_TOKEN"] = token
    if access.endpoint_url:
        options |= {"ENDPOINT": parts.netloc, "URL_STYLE": "path"}
    given = ", ".join(f"{name} ?" for name in options)
    ssl = str(parts.scheme == "https").lower()
    return f"CREATE OR REPLACE SECRET (TYPE s3, PROVIDER config, USE_SSL {ssl}, {given})", list(options.values())


def duckdb_dead_end(location: ObjectLocation) -> str:
    """The statement after which DuckDB asks for that location where nobody answers, until it is let in again."""
    return (
        "CREATE OR REPLACE SECRET (TYPE s3, PROVIDER config, USE_SSL false, ENDPOINT '127.0.0.1:1', URL_STYLE 'path', "
        f"KEY_ID 'none', SECRET 'none', SCOPE '{location.url}/')"
    )


def explained_store_error(location: ObjectLocation, error: Exception) -> str:
    """What obstore says, in one line with what to do."""
    said = scrubbed(" ".join(str(error).split()))[:500]
    return f"the object store at {location} does not do what it should: {said}"
