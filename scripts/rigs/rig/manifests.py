"""What `deploy/` renders to, as objects, and what a kubelet would make of it: the values of a container's environment, the files
of its volumes."""

import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
BASES = ("base", "overlays/hostpath", "overlays/init-container", "overlays/persistent-volume")
"""What an installation applies. Each has the DaemonSet."""

_VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


def kubectl():
    """The client that scripts/setup has put beside this Python, else the machine's."""
    beside = Path(sys.executable).parent / "kubectl"
    return str(beside) if beside.exists() else shutil.which("kubectl")


def render(directory, deploy=DEPLOY):
    """The objects of one kustomization, by `kubectl kustomize`. No server is asked."""
    done = subprocess.run([kubectl(), "kustomize", str(deploy / directory)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"kubectl kustomize {directory}: {done.stderr.strip()}")
    return Objects(found for found in yaml.safe_load_all(done.stdout) if found)


class Objects:
    """Rendered objects, found by kind and name."""

    def __init__(self, objects):
        self.all = list(objects)

    def __iter__(self):
        return iter(self.all)

    def of(self, *kinds):
        """All of some kinds."""
        return [found for found in self.all if found["kind"] in kinds]

    def get(self, kind, name, namespace=None):
        """One, or None."""
        for found in self.of(kind):
            meta = found["metadata"]
            if meta["name"] == name and (namespace is None or meta.get("namespace") == namespace):
                return found
        return None

    def workloads(self):
        """What has a pod template."""
        return self.of("DaemonSet", "Deployment", "StatefulSet", "Job")

    @property
    def daemon(self):
        """The DaemonSet."""
        return self.of("DaemonSet")[0]

    @property
    def engine(self):
        """The example workload, or None."""
        return self.get("Deployment", "engine")

    def data(self, kind, name, namespace):
        """{key: bytes} of a ConfigMap or Secret, or None if there is no such object."""
        found = self.get(kind, name, namespace)
        if found is None:
            return None
        plain = found.get("stringData", {}) if kind == "Secret" else found.get("data", {})
        values = {key: text.encode() for key, text in plain.items()}
        if kind == "Secret":
            values |= {key: base64.b64decode(text) for key, text in found.get("data", {}).items()}
        return values


def pod(workload):
    """The pod's spec of a workload."""
    return workload["spec"]["template"]["spec"]


def containers(spec):
    """All containers of a pod, those that run first first."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def container(spec, name):
    """One container by name."""
    return next(found for found in containers(spec) if found["name"] == name)


def uid(spec, of):
    """The user that a container runs as; None if that is its image's to say."""
    return of.get("securityContext", {}).get("runAsUser", spec.get("securityContext", {}).get("runAsUser"))


def expand(text, environment):
    """`$(NAME)` as kubelet expands it: what is unknown stays, `$$` is a dollar."""
    return _VARIABLE.sub(lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0]), text)


def environment(objects, namespace, of, downward):
    """The environment that kubelet gives a container. `downward`: {fieldPath: value}. Optional sources that are absent give
    nothing; others raise KeyError."""
    values = {}
    for source in of.get("envFrom", []):
        kind, reference = ("Secret", source["secretRef"]) if "secretRef" in source else ("ConfigMap", source["configMapRef"])
        found = objects.data(kind, reference["name"], namespace)
        if found is None and not reference.get("optional"):
            raise KeyError(f"{kind} {reference['name']}")
        values |= {key: value.decode() for key, value in (found or {}).items()}
    for entry in of.get("env", []):
        source = entry.get("valueFrom", {})
        if "fieldRef" in source:
            values[entry["name"]] = downward[source["fieldRef"]["fieldPath"]]
        elif source:
            kind = "Secret" if "secretKeyRef" in source else "ConfigMap"
            reference = source.get("secretKeyRef") or source["configMapKeyRef"]
            found = (objects.data(kind, reference["name"], namespace) or {}).get(reference["key"])
            if found is not None:
                values[entry["name"]] = found.decode()
            elif not reference.get("optional"):
                raise KeyError(f"{kind} {reference['name']} key {reference['key']}")
        else:
            values[entry["name"]] = expand(entry.get("value", ""), values)
    return values


def command(of, values, entrypoint):
    """What a container runs: its command or the image's entry point, and its arguments, expanded."""
    return [expand(word, values) for word in [*of.get("command", entrypoint), *of.get("args", [])]]


def files(objects, namespace, volume):
    """{name: bytes} of a ConfigMap or Secret volume; None for any other kind."""
    for kind, key, name in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
        if key in volume:
            found = objects.data(kind, volume[key][name], namespace)
            if found is None:
                return {} if volume[key].get("optional") else None
            items = volume[key].get("items")
            return {item["path"]: found[item["key"]] for item in items} if items else found
    return None


def host_path(objects, namespace, volume):
    """The node's directory behind a volume, straight or by a claim; None for any other kind."""
    if "hostPath" in volume:
        return volume["hostPath"]["path"]
    if "persistentVolumeClaim" in volume:
        claim = objects.get("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], namespace)
        behind = claim and objects.get("PersistentVolume", claim["spec"].get("volumeName"))
        return behind["spec"].get("hostPath", {}).get("path") if behind else None
    return None
