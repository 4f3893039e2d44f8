"""`python -m services.local_servers --folder F`: Postgres and an S3 server on 127.0.0.1 until Ctrl-C.

To try a shared lake: it prints what to put into the environment and the profile.
"""

import argparse
import os
import secrets
import signal
from pathlib import Path

from services.local_servers.postgres import LocalPostgres
from services.local_servers.running import LocalObjectStore, what_is_missing

DATABASES = ("lake", "dagster")


def main() -> None:
    parser = argparse.ArgumentParser(description="Postgres and an S3 server in memory, on 127.0.0.1 until Ctrl-C.")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder, made if it is not there")
    parser.add_argument("--postgres-port", type=int, default=5433)
    parser.add_argument("--s3-port", type=int, default=9000)
    arguments = parser.parse_args()
    missing = what_is_missing()
    if missing:
        parser.error(missing)
    folder: Path = arguments.folder.absolute()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"--folder: {folder} is not empty, and the object store forgets its files when it stops")
    folder.mkdir(parents=True, exist_ok=True)
    password = os.environ.get("PGPASSWORD") or secrets.token_urlsafe(12)
    postgres = LocalPostgres(folder / "postgres", arguments.postgres_port, password)
    postgres.start()
    try:
        lake, runs = (postgres.create_database(name) for name in DATABASES)
        store = LocalObjectStore(folder, arguments.s3_port, ("vpo",))
        try:
            print(f"export PGPASSWORD={password} AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local-secret")
            print(f"export VPO_LAKE__CATALOG={lake} VPO_LAKE__DATA=s3://vpo/lake")
            print("export VPO_VIDEOS=s3://vpo/videos VPO_CHECKPOINTS=s3://vpo/checkpoints")
            print(f"export VPO_OBJECT_STORE__ENDPOINT_URL={store.url} VPO_RUN_STORAGE={runs}")
            print("# Ctrl-C stops both servers", flush=True)
            _wait_for_the_end()
        finally:
            store.stop()
    finally:
        postgres.stop()


def _wait_for_the_end() -> None:
    """Until SIGINT or SIGTERM. They are blocked, for SIGTERM would else end this process and leave both servers."""
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    signal.sigwait(ends)


if __name__ == "__main__":
    main()
