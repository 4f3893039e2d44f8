"""Where lake, videos and checkpoints lie: in the home of one machine, or shared by several.

Belongs here: the settings `lake`, `videos`, `checkpoints` and `object_store`, and making what they name. Does not
belong here: how the stores work (storage/).

Passwords and keys are no settings. They come from the environment: PGPASSWORD (or ~/.pgpass) for Postgres,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN for an object store.
"""

import re
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from resources.backend_settings import Section
from storage.checkpoints import CheckpointStore
from storage.lake_place import FolderPlace, LakePlace, SharedPlace, check_catalog
from storage.object_store import ObjectLocation, ObjectStoreAccess, is_object_url
from storage.remote_files import RemoteFiles
from storage.videos import VideoStore

SQLITE = "sqlite"
_HOST_AND_PORT = re.compile(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?")


def _database(address: str) -> str:
    if address != SQLITE:
        check_catalog(address)
    return address


def _location(text: str) -> str:
    if is_object_url(text):
        return ObjectLocation.parse(text).url
    if not text.strip():
        raise ValueError("must be a folder or s3://bucket/prefix")
    return text


def _endpoint(url: str) -> str:
    scheme, _, rest = url.rstrip("/").partition("://")
    if scheme not in ("http", "https") or not _HOST_AND_PORT.fullmatch(rest):
        raise ValueError("must be http://host:port or https://host:port, without keys, path or question mark")
    return url.rstrip("/")


Database: TypeAlias = Annotated[str, AfterValidator(_database)]
"""`sqlite`, or the address of a database in Postgres."""
Location: TypeAlias = Annotated[str, AfterValidator(_location)]
"""A folder, or a place in an object store."""


class LakeSettings(Section):
    """Where the tables lie."""

    catalog: Database = Field(
        SQLITE,
        description="sqlite: a file in `home`, for one machine; or postgresql://user@host:port/database, for several. "
        "The password comes from the environment (PGPASSWORD)",
    )
    data: Location | None = Field(
        None, description="folder or s3://bucket/prefix, with a catalog in Postgres; none: the folder `lake` in `home`"
    )

    @model_validator(mode="after")
    def _shared_together(self) -> "LakeSettings":
        if self.catalog == SQLITE and self.data is not None:
            raise ValueError("data needs a catalog in Postgres: with sqlite, catalog and files lie together in `home`")
        return self


class ObjectStoreSettings(Section):
    """How the object store behind s3:// is reached; keys come from the environment."""

    endpoint_url: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        None, description="of a server other than Amazon's, such as http://minio:9000"
    )
    region: str = Field("us-east-1", pattern=r"^[a-z0-9-]+$")
    patience_seconds: float = Field(
        60.0, gt=0, le=240, description="how long an object store or a Postgres that is away is waited for"
    )

    @property
    def access(self) -> ObjectStoreAccess:
        return ObjectStoreAccess(self.endpoint_url, self.region, self.patience_seconds)


def lake_place(home: Path, lake: LakeSettings, store: ObjectStoreSettings) -> LakePlace:
    """Where the lake of these settings lies. Nothing is opened yet."""
    if lake.catalog == SQLITE:
        return FolderPlace(home / "lake")
    return SharedPlace(lake.catalog, lake.data or str(home / "lake"), home / "lake", store.access)


def video_store(home: Path, location: str | None, store: ObjectStoreSettings) -> VideoStore:
    """The videos of these settings; those of an object store have a cache in `home`."""
    root, remote = _placed(home / "videos", location, store)
    return VideoStore(root, remote=remote)


def checkpoint_store(home: Path, location: str | None, store: ObjectStoreSettings) -> CheckpointStore:
    """The checkpoints of these settings; those of an object store have copies in `home`."""
    root, remote = _placed(home / "checkpoints", location, store)
    return CheckpointStore(root, remote=remote)


def _placed(here: Path, location: str | None, store: ObjectStoreSettings) -> tuple[Path, RemoteFiles | None]:
    if location is None:
        return here, None
    if is_object_url(location):
        return here, RemoteFiles(location, store.access)
    return Path(location).expanduser().resolve(), None
