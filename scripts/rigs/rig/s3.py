"""An S3 server that preheat's authors did not write: moto's, in a process of its own."""

import os
import sys
import time
from pathlib import Path

from . import host, victim

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "rig", "AWS_SECRET_ACCESS_KEY": "rig-secret", "AWS_REGION": "us-east-1"}
"""What clients of the server need besides its address."""


class Server:
    """A context manager; `url` is the endpoint, `client` a boto3 client of it."""

    def __init__(self, log):
        self.url = f"http://127.0.0.1:{host.free_port()}"
        self._log = Path(log)

    def __enter__(self):
        command = [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", self.url.rsplit(":", 1)[1]]
        with open(self._log, "ab") as log:
            self._process = victim.start(command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)
        # Imported late: only rigs that use a server need the package.
        import boto3
        import botocore.config

        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=ENVIRONMENT["AWS_REGION"],
            aws_access_key_id=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
            config=botocore.config.Config(retries={"max_attempts": 0}, connect_timeout=1),
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client.list_buckets()
                return self
            except Exception as not_yet:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError(f"moto does not answer: {not_yet}\n{self._log.read_text()}") from None
                time.sleep(0.05)

    def __exit__(self, *_):
        victim.kill([self._process])

    @property
    def environment(self):
        """For a process that is to use this server."""
        return ENVIRONMENT | {"AWS_ENDPOINT_URL": self.url}

    def upload(self, directory, bucket, prefix="", **more):
        """Puts every file below `directory` under `prefix`; `more` goes to put_object (ChecksumAlgorithm="SHA256")."""
        if bucket not in [found["Name"] for found in self.client.list_buckets()["Buckets"]]:
            self.client.create_bucket(Bucket=bucket)
        for path in sorted(Path(directory).rglob("*")):
            if path.is_file():
                with open(path, "rb") as body:
                    self.client.put_object(Bucket=bucket, Key=prefix + str(path.relative_to(directory)), Body=body, **more)
