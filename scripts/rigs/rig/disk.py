"""Loop disks, and cutting their power.

The cut is the file system's own shutdown call without a log flush: everything that was not synced is gone, as after a real
power cut, within milliseconds and within one boot. It cannot show reordering below a flush; it does show a missing sync.
"""

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

from . import host, victim

KINDS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
}
"""File systems that the rigs know, with the command that makes them. Btrfs has no shutdown call."""

NEEDS = ("root", "loop", "mounts", "losetup", "mkfs.ext4", "mkfs.xfs")

_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
# Releasing the last file of a killed process takes some milliseconds on a busy machine; ten seconds is a leak.
_UNMOUNT_SECONDS = 10


class Disk:
    """A file system in a sparse image, mounted at `path` between `mount` and `unmount`."""

    def __init__(self, kind, directory, size=512 << 20):
        self.kind = kind
        self.path = Path(directory) / f"{kind}-disk"
        self.image = Path(directory) / f"{kind}.image"
        self.mounted = False
        self.path.mkdir()
        with open(self.image, "wb") as image:
            image.truncate(size)
        host.run(*KINDS[kind], self.image)

    def mount(self):
        """Mounts, replaying the log. The loop device goes with the mount (autoclear)."""
        host.run("mount", "-o", "loop", "-t", self.kind, self.image, self.path)
        self.mounted = True

    def unmount(self):
        """Unmounts, waiting for files that dying processes still hold."""
        deadline = time.monotonic() + _UNMOUNT_SECONDS
        while self.mounted:
            done = subprocess.run(["umount", self.path], stderr=subprocess.PIPE, text=True)
            if done.returncode == 0:
                self.mounted = False
            elif time.monotonic() > deadline:
                raise RuntimeError(f"{self.path} stays busy: {done.stderr.strip()}")
            else:
                time.sleep(0.002)

    def sync(self):
        """Syncs this file system alone."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            if _libc().syncfs(directory) != 0:
                raise OSError("syncfs failed")
        finally:
            os.close(directory)

    def shut_down(self):
        """Cuts the power: whatever is not synced is lost, and every later operation fails with EIO until the next mount."""
        mount_point = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(mount_point, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
                raise host.Unfit(f"shutdown call on {self.kind}") from error
            raise
        finally:
            os.close(mount_point)

    def commit_something_else(self):
        """Syncs a file that nobody cares for. It stands in for the journal's timer: names are committed, data is not.

        Without it a cut takes names and bytes alike, and a torn file is never seen.
        """
        file = os.open(self.path / "unrelated", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(file, os.urandom(8), 0)
            os.fsync(file)
        finally:
            os.close(file)

    def write_back_some(self, rng):
        """Syncs some files and not others. It stands in for the kernel's writeback, which may choose any.

        Kinds of files are favoured as a whole, by their directory: a record that is on disk beside data that is not is what
        an order of syncs has to rule out.
        """
        favoured = {}
        for directory, _, names in os.walk(self.path):
            for name in names:
                kind = (directory.split(os.sep)[len(self.path.parts) + 1 :][:1], name.rpartition(".")[2][:4])
                if rng.random() < favoured.setdefault(str(kind), rng.choice((0, 0, 0.5, 1))):
                    with contextlib.suppress(OSError):
                        file = os.open(os.path.join(directory, name), os.O_RDONLY)
                        try:
                            os.fsync(file)
                        finally:
                            os.close(file)


@contextlib.contextmanager
def disk(kind, directory, size=512 << 20):
    """A mounted disk for the length of a `with`; its image goes too."""
    made = Disk(kind, directory, size)
    try:
        made.mount()
        yield made
    finally:
        made.unmount()
        made.image.unlink()
        made.path.rmdir()


def power_cut(disk, processes, acknowledgements, rng, commit_chance=0.7, writeback_chance=0.0):
    """Cuts the power under `processes` and leaves the disk unmounted. Returns the bytes acknowledged before the cut; without a
    pipe of `acknowledgements` none.

    The order is the point. The victims are stopped and *seen* to be stopped before their acknowledgements are read: a
    process that outlives the cut by a moment can be told by the dead file system that its sync went well, and what it
    says then is a promise that nobody made.
    """
    if rng.random() < commit_chance:
        disk.commit_something_else()
    victim.stop(processes)
    if rng.random() < writeback_chance:
        disk.write_back_some(rng)
    acknowledged = victim.read_available(acknowledgements) if acknowledgements is not None else b""
    disk.shut_down()
    victim.kill(processes)
    disk.unmount()
    return acknowledged


def _libc():
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
