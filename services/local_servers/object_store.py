"""An S3 server in memory (moto's), to be run by itself: `python -m services.local_servers.object_store --port 9000`.

Belongs here: serving S3 on 127.0.0.1, and the outage that can be ordered by putting a file in place: while
`--outage-file` exists, every request is answered with 503.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


class Outage:
    """A WSGI application that answers 503 while a file exists, and passes requests on otherwise."""

    def __init__(self, application: Callable[..., Iterable[bytes]], file: Path | None) -> None:
        self._application = application
        self._file = file

    def __call__(self, environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._file is not None and self._file.exists():
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))])
            return [BUSY]
        return self._application(environment, start_response)


def serve(port: int, outage_file: Path | None, buckets: Iterable[str]) -> None:
    """Serve until it is stopped. Needs the package moto[s3] with flask and flask-cors."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import WSGIRequestHandler, run_simple

    class Quiet(WSGIRequestHandler):  # type: ignore[misc]  # the package is there for tests only
        """HTTP/1.1, so that connections are kept, and no line for each request."""

        protocol_version = "HTTP/1.1"

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            del code, size

    for bucket in buckets:
        s3_backends["123456789012"]["aws"].create_bucket(bucket, "us-east-1")
    application = Outage(DomainDispatcherApplication(create_backend_app), outage_file)
    run_simple("127.0.0.1", port, application, threaded=True, request_handler=Quiet)


def main() -> None:
    parser = argparse.ArgumentParser(description="An S3 server in memory on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--bucket", action="append", default=[], help="make this bucket at the start; may be repeated")
    parser.add_argument("--outage-file", type=Path, help="while this file exists, every request is answered with 503")
    arguments = parser.parse_args()
    serve(arguments.port, arguments.outage_file, arguments.bucket)


if __name__ == "__main__":
    main()
