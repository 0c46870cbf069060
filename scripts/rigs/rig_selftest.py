"""The power-cut rig on writers whose defects are known: proof that it can fail, and that it does not fail the honest.

Each writer makes blobs one after the other: a directory every few blobs, a temporary file, a rename, an acknowledgement on
its standard output. The honest one syncs the file, the directory and a new directory's parent. The others leave something out and
must be caught within the cuts; then the rig's word on preheat is worth something.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from rig import disk, host, victim

DEFECTS = {
    # name: what the rig must see ("corrupt": a visible blob with wrong bytes; "lost": an acknowledged one that is gone)
    "no-file-sync": "corrupt",
    "rename-before-sync": "corrupt",
    "no-directory-sync": "lost",
    "acknowledge-before-directory-sync": "lost",
}


def content(identity):
    """The bytes of blob `identity`: anybody can say whether a file holds them."""
    return random.Random(identity).randbytes(4096 + identity * 7919 % 60000)


def write_blobs(root, first, defect):
    """The victim: writes blobs until it is killed."""
    identity = first
    print("ready", flush=True)
    while True:
        shelf = root / f"{identity // 8:08}"
        new = not shelf.exists()
        if new:
            shelf.mkdir()
            if defect is None:
                sync_directory(root)
        partial, name = root / f"partial-{identity}", shelf / str(identity)
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(file, content(identity))
        if defect == "rename-before-sync":
            os.rename(partial, name)
            time.sleep(0.001)
            os.fsync(file)
        else:
            if defect != "no-file-sync":
                os.fsync(file)
            os.rename(partial, name)
        os.close(file)
        if defect == "acknowledge-before-directory-sync":
            os.write(1, f"{identity}\n".encode())
            time.sleep(0.001)
        if defect != "no-directory-sync":
            sync_directory(shelf)
        if defect != "acknowledge-before-directory-sync":
            os.write(1, f"{identity}\n".encode())
        identity += 1


def sync_directory(path):
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


class Tally:
    """What a series of cuts did."""

    def __init__(self):
        self.cuts = self.visible = self.acknowledged = self.corrupt = self.lost = 0
        self.first_seen = None


def cut_off(kind, directory, rng, defect, cuts):
    """Cuts the power under one writer again and again; a defect ends the series once it is seen."""
    tally, first = Tally(), 0
    with disk.disk(kind, directory) as disk_:
        root = disk_.path / "store"
        for tally.cuts in range(1, cuts + 1):
            root.mkdir(exist_ok=True)
            disk_.sync()
            writer = victim.start([sys.executable, "-S", __file__, "--write", root, str(first), defect or "none"])
            assert victim.read_line(writer) == "ready\n"
            time.sleep(rng.uniform(0.005, 0.030))
            # A torn line is no acknowledgement.
            said = disk.power_cut(disk_, [writer], writer.stdout, rng).decode().rpartition("\n")[0].split()
            writer.stdout.close()
            if writer.returncode != -signal.SIGKILL:
                raise RuntimeError(f"the writer ended by itself: {writer.returncode}")
            disk_.mount()
            visible = {int(path.name): path for path in root.glob("*/*")}
            good = {identity for identity, path in visible.items() if path.read_bytes() == content(identity)}
            acknowledged = {int(word) for word in said}
            tally.visible += len(visible)
            tally.acknowledged += len(acknowledged)
            tally.corrupt += len(visible.keys() - good)
            tally.lost += len(acknowledged - visible.keys())
            if defect and getattr(tally, DEFECTS[defect]):
                tally.first_seen = tally.cuts
                break
            first = max(visible.keys() | acknowledged | {first}) + 1000
            subprocess.run(["rm", "-rf", root], check=True)
    return tally


def main():
    if sys.argv[1:2] == ["--write"]:
        write_blobs(Path(sys.argv[2]), int(sys.argv[3]), None if sys.argv[4] == "none" else sys.argv[4])
    options, rng = host.begin(__doc__, disk.NEEDS, cuts=60)
    directory, failed = host.work_directory(), 0
    for kind in disk.KINDS:
        for defect in (None, *DEFECTS):
            began = time.monotonic()
            tally = cut_off(kind, directory, rng, defect, options.cuts)
            if defect is None:
                good = not (tally.corrupt or tally.lost) and tally.acknowledged >= options.cuts
                verdict = "passes" if good else "FAILS: the honest writer must lose nothing and get something done"
            else:
                good = tally.first_seen is not None
                verdict = f"caught at cut {tally.first_seen}" if good else f"FAILS: no {DEFECTS[defect]} blob seen"
            failed += not good
            print(
                f"{kind:4}  {defect or 'honest':34} {verdict}: {tally.cuts} cuts, {tally.visible} visible, "
                f"{tally.corrupt} corrupt, {tally.acknowledged} acknowledged, {tally.lost} lost, {time.monotonic() - began:.1f} s"
            )
    print(f"{2 * (1 + len(DEFECTS)) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
