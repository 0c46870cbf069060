"""What a bucket and a hub answer, as a table of paths: `{path: {"status", "headers", "file"}}`.

Both are static as far as fetching goes, so that any server that can name paths is one: the bytes travel the same way, and what
differs is what a client makes of it.
"""

import hashlib
import json
import time
import xml.sax.saxutils
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
LARGE = 100_000
"""Files of this size and more are kept outside git, by a hub."""


def bucket(work, root, name, prefix):
    """The listing of `prefix` in the bucket `root/name`. Clients that name keys in the path find the files themselves."""
    entries = []
    for path in files(Path(root) / name / prefix):
        stat = path.stat()
        # As nginx makes it of a file.
        tag = f'"{int(stat.st_mtime):x}-{stat.st_size:x}"'
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
        entries.append(
            f"<Contents><Key>{path.relative_to(Path(root) / name)}</Key><LastModified>{when}</LastModified>"
            f"<ETag>{xml.sax.saxutils.escape(tag)}</ETag><Size>{stat.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    listing = Path(work) / f"{name}-{prefix}.xml"
    listing.write_text(
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{name}</Name><Prefix>{prefix}/</Prefix><KeyCount>{len(entries)}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"
    )
    answer = {"status": 200, "headers": {"Content-Type": "application/xml"}, "file": str(listing)}
    return {f"/{name}": answer, f"/{name}/": answer}


class Hub:
    """`root/directory` as a repository on a hub: a commit, a tree, large files on another host. Digests are computed once."""

    def __init__(self, work, root, repository, directory):
        self.repository, self.directory = repository, directory
        self._work, self._root = Path(work), Path(root)
        self._tree = []
        for path in files(self._root / directory):
            size, relative = path.stat().st_size, str(path.relative_to(self._root / directory))
            with open(path, "rb") as file:
                if size >= LARGE:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    lfs = {"oid": digest, "size": size, "pointerSize": 134}
                    self._tree.append({"type": "file", "path": relative, "size": size, "oid": "f" * 40, "lfs": lfs})
                else:
                    digest = hashlib.sha1(b"blob %d\0" % size + file.read()).hexdigest()
                    self._tree.append({"type": "file", "path": relative, "size": size, "oid": digest})

    def table(self, storage):
        """What the hub answers; `storage` is the other host."""
        name = self.repository.replace("/", "-")
        api, resolve = f"/api/models/{self.repository}", f"/{self.repository}/resolve"
        info = {"_id": "0" * 24, "id": self.repository, "modelId": self.repository, "sha": COMMIT, "gated": False, "private": False,
                "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": entry["path"]} for entry in self._tree]}
        answers = {}
        for what, content in (("tree", self._tree), ("info", info)):
            file = self._work / f"{name}-{what}.json"
            file.write_text(json.dumps(content))
            answers[what] = {"status": 200, "headers": {"Content-Type": "application/json"}, "file": str(file)}
        table = {api: answers["info"]}
        for revision in ("main", COMMIT):
            table |= {f"{api}/revision/{revision}": answers["info"], f"{api}/tree/{revision}": answers["tree"]}
            table |= {f"{resolve}/{revision}/{entry['path']}": self._file(entry, storage) for entry in self._tree}
        return table

    def _file(self, entry, storage):
        headers = {"X-Repo-Commit": COMMIT}
        if "lfs" in entry:
            headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"'}
            headers["Location"] = f"{storage}/{self.directory}/{entry['path']}?Signature=bench"
            return {"status": 302, "headers": headers}
        return {"status": 200, "headers": headers | {"ETag": f'"{entry["oid"]}"'}, "file": str(self._root / self.directory / entry["path"])}


def files(directory):
    """Every regular file below it, in order."""
    return sorted(path for path in Path(directory).rglob("*") if path.is_file())
