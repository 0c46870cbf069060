"""Enough of a node to run a container of a rendered pod: its image's files as the root, its volumes mounted where it wants them, its
environment, user, groups and capabilities. There is no container runtime: no seccomp profile, no cgroup, no process namespace."""

import atexit
import ctypes
import os
import shutil
import signal
import subprocess
from pathlib import Path

from . import host, manifests, victim

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
# linux/capability.h; those that a manifest here may add.
_CAPABILITIES = {"CHOWN": 0}
_LAST_CAPABILITY = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_libc = ctypes.CDLL(None)


def image(directory, program, programs=("sh", "chown", "cat")):
    """The files of deploy/Dockerfile's last stage, as far as the deployment uses them; without `programs`, and with a static
    program, those of Dockerfile.static."""
    directory = Path(directory)
    _copy(program, directory / "usr/local/bin/preheat")
    for name in programs:
        _copy(shutil.which(name), directory / "bin" / name)
    if programs:
        for name in (program, *map(shutil.which, programs)):
            for word in host.run("ldd", name).split():
                if word.startswith("/"):
                    _copy(word, directory / word.lstrip("/"))
    _copy("/etc/ssl/certs/ca-certificates.crt", directory / "etc/ssl/certs/ca-certificates.crt")
    return directory


def _copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(source, target)


class Node:
    """A machine: `root` is its file system, `downward` what pods may ask about it ({fieldPath: value}), `names` what its DNS tells
    ({name: address})."""

    def __init__(self, directory, files, downward, names):
        self.directory, self.files, self.downward, self.names = Path(directory), files, downward, names
        self.root = self.directory / "root"
        self.root.mkdir(parents=True)
        self._pods = 0

    def pod(self, objects, workload):
        """A pod of a workload, new: its emptyDirs are empty."""
        self._pods += 1
        return Pod(self, self.directory / f"pod-{self._pods}", objects, workload)


class Pod:
    """One pod on a node. Its containers are run by `run` (to the end) or `start`."""

    def __init__(self, node, directory, objects, workload):
        self.node, self.directory, self.objects = node, directory, objects
        self.namespace, self.spec = workload["metadata"]["namespace"], manifests.pod(workload)
        self.volumes = {volume["name"]: self._volume(volume) for volume in self.spec.get("volumes", [])}

    def _volume(self, volume):
        """(where it lies, whether the whole volume is read-only)"""
        place = self.directory / "volumes" / volume["name"]
        group = self.spec.get("securityContext", {}).get("fsGroup")
        if (path := manifests.host_path(self.objects, self.namespace, volume)) is not None:
            # Of a hostPath neither owner nor group is changed.
            place = self.node.root / path.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            return place, volume.get("persistentVolumeClaim", {}).get("readOnly", False)
        place.mkdir(parents=True)
        if "emptyDir" in volume:
            if group is not None:
                os.chown(place, 0, group)
            place.chmod(0o2777 if group is not None else 0o777)
            return place, False
        mode = (volume.get("secret") or volume["configMap"]).get("defaultMode", 0o644)
        for name, content in manifests.files(self.objects, self.namespace, volume).items():
            (place / name).write_bytes(content)
            (place / name).chmod(mode if group is None else mode | 0o440)
            if group is not None:
                os.chown(place / name, 0, group)
        return place, True

    def _file_system(self, of):
        """Mounts what a container sees, and answers where."""
        root = self.directory / "containers" / of["name"]
        if root.exists():
            return root
        shutil.copytree(self.node.files, root, copy_function=os.link)
        host.run("mount", "--bind", root, root)
        for name in ("proc", "dev"):
            (root / name).mkdir()
        host.run("mount", "--bind", "/proc", root / "proc")
        for name in ("null", "zero", "urandom"):
            (root / "dev" / name).touch()
            host.run("mount", "--bind", f"/dev/{name}", root / "dev" / name)
        # As the runtime writes it; the names stand for what DNS would tell.
        (root / "etc/hosts").write_text("".join(f"{address} {name}\n" for name, address in self.node.names.items()))
        for mount in of.get("volumeMounts", []):
            place, read_only = self.volumes[mount["name"]]
            at = root / mount["mountPath"].lstrip("/")
            at.mkdir(parents=True, exist_ok=True)
            host.run("mount", "--bind", place, at)
            if read_only or mount.get("readOnly"):
                host.run("mount", "-o", "remount,bind,ro", at)
        if of.get("securityContext", {}).get("readOnlyRootFilesystem"):
            host.run("mount", "-o", "remount,bind,ro", root)
        return root

    def start(self, name, words=None, more=(), environment=None, **options):
        """Starts a container: what it says itself and `more`, or `words` instead. It dies with the rig."""
        of = manifests.container(self.spec, name)
        root = self._file_system(of)
        values = {"PATH": _PATH} | manifests.environment(self.objects, self.namespace, of, self.node.downward) | (environment or {})
        command = [str(word) for word in words or [*manifests.command(of, values, ["/usr/local/bin/preheat"]), *more]]
        process = subprocess.Popen(command, env=values, preexec_fn=self._enter(of, root), **options)
        atexit.register(victim.kill, [process])
        return process

    def run(self, name, words=None, seconds=60, **options):
        """Runs a container to its end; its exit status, standard output (bytes) and error (text)."""
        process = self.start(name, words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        out, error = process.communicate(timeout=seconds)
        return process.returncode, out, error.decode(errors="replace")

    def _enter(self, of, root):
        """What the child does before it becomes the container."""
        whole, own = self.spec.get("securityContext", {}), of.get("securityContext", {})
        user, group = (own.get(key, whole.get(key, 0)) for key in ("runAsUser", "runAsGroup"))
        groups = [*whole.get("supplementalGroups", []), *([whole["fsGroup"]] if "fsGroup" in whole else [])]
        kept = {_CAPABILITIES[name] for name in own.get("capabilities", {}).get("add", [])}
        if "ALL" not in own.get("capabilities", {}).get("drop", []) or own.get("allowPrivilegeEscalation") is not False:
            raise RuntimeError(f"{of['name']} keeps capabilities that this node knows nothing of")

        def enter():
            os.chroot(root)
            os.chdir("/")
            for capability in range(_LAST_CAPABILITY + 1):
                # What is not in the bounding set is lost at exec, by root too. Those for the three calls below go with them.
                if capability not in kept:
                    _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
            os.setgroups(groups)
            os.setgid(group)
            os.setuid(user)
            _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            # Changing the user has cleared it.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        return enter
