"""What every client has to bring, and whether it brought just that."""

import dataclasses
import os
from pathlib import Path

from . import measure

_PIECE = 4 << 20


@dataclasses.dataclass
class Source:
    """A model of random bytes below `directory`. `large`: {file name: size} of its shards, which every client is told to bring."""

    directory: Path
    large: dict

    @property
    def bytes(self):
        """Of all shards."""
        return sum(self.large.values())

    @property
    def names(self):
        """Of the shards, in order."""
        return sorted(self.large)

    def complete(self, who, out, names=None):
        """Every shard is somewhere below `out`, whole by its size. `names`: {what it is called there: what it is here}."""
        found = {(names or {}).get(path.name, path.name): path.stat().st_size for path in Path(out).rglob("*") if path.is_file()}
        for name, size in self.large.items():
            if found.get(name) != size:
                raise measure.Failed(f"{who}: {name} has {found.get(name)} of {size} bytes")

    def same(self, who, out, names=None):
        """Every file below `out` that is called as one of the source's has the same bytes, and no shard is missing. A size is
        no proof: several clients set it before the first byte has come."""
        self.complete(who, out, names)
        own = {path.name: path for path in self.directory.rglob("*") if path.is_file()}
        for path in Path(out).rglob("*"):
            name = (names or {}).get(path.name, path.name)
            if name in own and path.is_file():
                _same(who, path, own[name])


def _same(who, path, other):
    if os.path.samefile(path, other):
        raise measure.Failed(f"{who}: {path} is the source itself")
    with open(path, "rb", buffering=0) as one, open(other, "rb", buffering=0) as two:
        at, mine, theirs = 0, bytearray(_PIECE), bytearray(_PIECE)
        while True:
            count, wanted = one.readinto(mine), two.readinto(theirs)
            # A short piece leaves the rest of the one before, which was the same in both.
            if count != wanted or mine != theirs:
                raise measure.Failed(f"{who}: {path.name} differs from the source in the {_PIECE} bytes from {at}")
            if not count:
                return
            at += count
