"""The clients: how each is told to bring a model, with the settings that serve it best.

A client is given an empty directory and leaves the model's large files in it, or somewhere below it. Each starts as a process
of its own, so that what it costs to start is part of what it takes.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rig import host

PROGRAMS = Path(__file__).with_name("programs")
VENV = Path(sys.executable).parent


@dataclasses.dataclass
class Client:
    """One line of a table."""

    name: str
    checks: str
    """What it proves of the bytes."""
    command: Callable
    """The words of its command line, given the directory that it writes to."""
    environment: dict = dataclasses.field(default_factory=dict)
    keeps: bool = True
    """Leaves the files, which are compared with the model's: byte by byte when it is warmed up, by size after each run."""
    proof: Callable = None
    """Of a client that keeps nothing: its command line when it is warmed up, which does the same and keeps what it received."""
    names: dict = dataclasses.field(default_factory=dict)
    """{what it calls a file: what the model calls it}, where they differ."""
    server: object = None
    """Whose processor time and bytes are counted, where it is not the same for all."""
    before: Callable = None
    """What is done before each run, untimed."""
    slow: bool = False
    """Takes so long that it runs in `rounds.fewer` of the rounds only."""
    peer: bool = True
    """Another program that people use; not a limit of the machine, and not preheat."""


def environment(**more):
    """What every client runs with: nothing of the caller's own settings for preheat, AWS or hubs, and no proxies."""
    drop = ("PREHEAT_", "AWS_", "HF_", "RUNAI_", "HTTP_", "HTTPS_", "ALL_", "http_", "https_", "all_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return clean | {"PYTHONDONTWRITEBYTECODE": "1", "NO_PROXY": "*"} | more


def with_environment(client, more):
    """The same client with more in its environment."""
    return dataclasses.replace(client, environment=client.environment | more)


def slow(client):
    """The same client in fewer rounds."""
    return dataclasses.replace(client, slow=True)


def s3_environment(web):
    """For clients of `web` as a bucket."""
    return {
        "AWS_ENDPOINT_URL": web.url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ALLOW_HTTP": "true",
    }


def preheat(program, reference, name="preheat fetch", checks="BLAKE3", **more):
    """`preheat fetch` without a daemon, from nothing to the published tree."""
    def command(out):
        return [program, "fetch", reference, "--root", out / "root", "--direct"]
    return Client(name, checks, command, more, peer=False)


def curl(urls, keep=True):
    """One curl for each file, all at once."""
    def command(out):
        words = [f"curl -sSf -o {str(out / url.rsplit('/', 1)[1]) if keep else '/dev/null'} {url} &" for url in urls]
        return ["sh", "-c", " ".join(words) + " wait"]
    return Client(f"curl × {len(urls)}" + ("" if keep else " → /dev/null"), "nothing", command, keeps=keep, peer=keep)


def s5cmd(web, bucket, prefix, keys):
    """All objects at once, eight parts of each at once."""
    def command(out):
        words = out.parent / f"{out.name}.s5cmd"
        words.write_text("".join(f"cp --concurrency 8 s3://{bucket}/{prefix}/{key} {out}/\n" for key in keys))
        return [VENV / "s5cmd", "--endpoint-url", web.url, "--no-sign-request", "run", words]
    return Client("s5cmd", "nothing", command, s3_environment(web))


def awscrt(web, bucket, prefix, keys):
    """AWS's common runtime through its Python binding."""
    def command(out):
        return [VENV / "python3", PROGRAMS / "awscrt_get.py", web.url.removeprefix("http://"), bucket, prefix, out, *keys]
    return Client("awscrt", "nothing", command, s3_environment(web))


def boto3(web, bucket, prefix, keys):
    """boto3's managed transfer."""
    def command(out):
        return [VENV / "python3", PROGRAMS / "boto3_get.py", web.url, bucket, prefix, out, *keys]
    return Client("boto3", "nothing", command, s3_environment(web))


def hf(web, repository, **more):
    """`hf download` of a repository."""
    def command(out):
        return [VENV / "hf", "download", repository, "--local-dir", out / "model", "--max-workers", "8"]
    settings = {"HF_ENDPOINT": getattr(web, "hub_url", web.url), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return Client("hf download", "sizes", command, settings | more)


def runai(web, bucket, prefix, keys, concurrency):
    """Run:ai's model streamer into memory, torch's import included."""
    def command(out):
        urls = [f"s3://{bucket}/{prefix}/{key}" for key in keys]
        return [host.cache() / "bench-runai" / "bin" / "python3", PROGRAMS / "runai_get.py", *urls]
    settings = {"RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0", "RUNAI_STREAMER_S3_UNSIGNED": "1", "RUNAI_STREAMER_MEMORY_LIMIT": "-1",
                "RUNAI_STREAMER_CONCURRENCY": str(concurrency), "RUNAI_STREAMER_OBJ_CONCURRENCY": str(concurrency)}
    return Client(f"runai streamer × {concurrency} → RAM", "nothing", command, s3_environment(web) | settings, keeps=False)


def aria2(urls, connections=8, authority=None):
    """All files at once over so many connections in all."""
    def command(out):
        words = out.parent / f"{out.name}.aria2"
        words.write_text("".join(f"{url}\n" for url in urls))
        each = min(16, max(1, connections // len(urls)))
        more = [f"--ca-certificate={authority}"] if authority else []
        return ["aria2c", "-q", "-i", words, "-d", out, "-j", len(urls), "-x", each, "-s", each, "--file-allocation=none", "--no-conf", *more]
    return Client("aria2c", "nothing", command)


def floor(yardstick, web, prefix, files, connections=4, sha256=False, name="floor: receive, hash, write", authority=None):
    """The least that a verified fetch can be."""
    def command(out):
        words = [yardstick, "floor", web.url.split("://")[1], f"/{prefix}/", *files, "--out", out, "--connections", connections]
        return words + (["--sha256"] if sha256 else []) + (["--authority", authority] if authority else [])
    return Client(name, "BLAKE3, SHA-256" if sha256 else "BLAKE3", command, peer=False)
