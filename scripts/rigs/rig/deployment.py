"""What a schema does not see: names and numbers that must meet across the objects of a deployment. Each check yields sentences;
none means that it holds."""

import re
import tomllib
from pathlib import PurePosixPath

from . import manifests, pod_security

# What a kustomization may have. A kind that no schema knows would pass as a warning, and a role that nobody needs unseen.
_BASE = {"ConfigMap", "DaemonSet", "Namespace", "ResourceQuota", "Secret", "Service", "ServiceAccount"}
KINDS = {
    "base": _BASE,
    "overlays/hostpath": _BASE | {"Deployment"},
    "overlays/init-container": _BASE | {"Deployment"},
    "overlays/persistent-volume": _BASE
    | {"Deployment", "PersistentVolume", "PersistentVolumeClaim", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"},
    "monitoring": {"ConfigMap", "PodMonitor", "PrometheusRule"},
}

_HOST_PATH_TYPES = {"", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"}
_CLUSTER_WIDE = {"Namespace", "PersistentVolume", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}

# What the daemon's own pod takes beyond `restricted`, and nothing else: the node's directories, root for handing them over, and
# in one overlay a port of the node.
_DAEMON_EXCEPTIONS = {
    "volume store is a hostPath",
    "volume socket is a hostPath",
    "own-directories may be root (runAsNonRoot)",
    "own-directories is user 0",
    "own-directories adds CHOWN",
    "preheat has the host's port 7420",
}

# Own memory of a fetch that has to ask the origin itself (scripts/rigs/memory.py: 60 MiB at most), and of a daemon beyond its
# transfer buffers.
_FETCH_BYTES = 64 << 20
_DAEMON_BYTES = 256 << 20

_SIZES = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def problems(objects, what, routes):
    """Everything that is wrong with one rendered kustomization. `routes`: the paths that the daemon's API has."""
    found = [f"kinds: {', '.join(sorted(kinds))}" for kinds in [{each["kind"] for each in objects} ^ KINDS[what]] if kinds]
    if what == "monitoring":
        return found
    for check in (_identities, _namespaces, _selectors, _store, _settings, _claims, _policies):
        found += check(objects)
    for workload in objects.workloads():
        namespace, spec = workload["metadata"]["namespace"], manifests.pod(workload)
        for check in (_volumes, _environment, _resources):
            found += [f"{workload['metadata']['name']}: {problem}" for problem in check(objects, namespace, spec)]
        found += [f"{workload['metadata']['name']}: {problem}" for problem in _probes(spec, routes)]
    return found


def size(text):
    """A quantity of bytes: `64Gi`, `512Mi`."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()
    return int(float(number) * _SIZES[unit])


def configuration(objects):
    """config.toml as the daemon's container sees it: (its path there, the text)."""
    spec = manifests.pod(objects.daemon)
    of = manifests.container(spec, "preheat")
    path = PurePosixPath(of["args"][of["args"].index("--config") + 1])
    return path, _file(objects, "preheat", spec, of, path).decode()


def _file(objects, namespace, spec, of, path):
    """The content of a file that a ConfigMap or Secret brings to `path` of a container, or None."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for mount in of.get("volumeMounts", []):
        if PurePosixPath(mount["mountPath"]) == PurePosixPath(path).parent and mount["name"] in volumes:
            return (manifests.files(objects, namespace, volumes[mount["name"]]) or {}).get(PurePosixPath(path).name)
    return None


# === of all objects ===


def _identities(objects):
    seen = set()
    for each in objects:
        meta = each["metadata"]
        name = (each["kind"], meta.get("namespace"), meta["name"])
        if name in seen:
            yield f"{name} is there twice"
        seen.add(name)


def _namespaces(objects):
    levels = {}
    for namespace in objects.of("Namespace"):
        level = namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        levels[namespace["metadata"]["name"]] = level
        if level not in pod_security.LEVELS:
            yield f"namespace {namespace['metadata']['name']} says no Pod Security level"
    for each in objects:
        namespace = each["metadata"].get("namespace")
        if (namespace is None) != (each["kind"] in _CLUSTER_WIDE):
            yield f"{each['kind']} {each['metadata']['name']}: namespace {namespace}"
        elif namespace is not None and namespace not in levels:
            yield f"{each['kind']} {each['metadata']['name']}: no namespace {namespace} here"
    for workload in objects.workloads():
        name, spec = workload["metadata"]["name"], manifests.pod(workload)
        for violation in pod_security.violations(spec, levels.get(workload["metadata"]["namespace"]) or "restricted"):
            yield f"{name} does not pass the level of its namespace: {violation}"
        # The daemon's namespace allows everything; what the daemon uses of that is written down.
        allowed = _DAEMON_EXCEPTIONS if workload is objects.daemon else set()
        beyond = set(pod_security.violations(spec, "restricted")) - allowed
        if levels.get(workload["metadata"]["namespace"]) == "privileged":
            beyond -= {problem for problem in beyond if problem.endswith("is a hostPath")}
        for violation in sorted(beyond):
            yield f"{name} takes more than it says: {violation}"


def _selectors(objects):
    for workload in objects.workloads():
        wanted, labels = workload["spec"]["selector"]["matchLabels"], workload["spec"]["template"]["metadata"]["labels"]
        if not wanted.items() <= labels.items():
            yield f"{workload['metadata']['name']}: its selector does not match its pods"
    for service in objects.of("Service"):
        name, wanted = service["metadata"]["name"], service["spec"]["selector"].items()
        matching = [
            manifests.pod(workload)
            for workload in objects.workloads()
            if workload["metadata"]["namespace"] == service["metadata"]["namespace"]
            and wanted <= workload["spec"]["template"]["metadata"]["labels"].items()
        ]
        if len(matching) != 1:
            yield f"service {name} selects {len(matching)} workloads"
            continue
        ports = {port["name"] for of in matching[0]["containers"] for port in of.get("ports", [])}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"service {name}: no port {port['targetPort']} in its pods"
    if objects.get("Service", "preheat")["spec"].get("internalTrafficPolicy") != "Local":
        yield "service preheat: a caller would reach another node's daemon"


def _claims(objects):
    for volume in objects.of("PersistentVolume"):
        name, spec = volume["metadata"]["name"], volume["spec"]
        claim = objects.get("PersistentVolumeClaim", spec["claimRef"]["name"], spec["claimRef"]["namespace"])
        if claim is None or claim["spec"].get("volumeName") != name:
            yield f"volume {name} and its claim do not name each other"
            continue
        for key in ("accessModes", "storageClassName"):
            if spec[key] != claim["spec"][key]:
                yield f"volume {name} and its claim differ in {key}"
        if size(claim["spec"]["resources"]["requests"]["storage"]) > size(spec["capacity"]["storage"]):
            yield f"volume {name} is smaller than its claim"
        if spec["persistentVolumeReclaimPolicy"] != "Retain":
            yield f"volume {name} would be reclaimed"
        affinity = manifests.pod(objects.daemon)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        if spec["nodeAffinity"]["required"] != affinity:
            yield f"volume {name} is for other nodes than the daemon"


def _policies(objects):
    for binding in objects.of("ValidatingAdmissionPolicyBinding"):
        if objects.get("ValidatingAdmissionPolicy", binding["spec"]["policyName"]) is None:
            yield f"binding {binding['metadata']['name']} names no policy"
    user = manifests.container(manifests.pod(objects.daemon), "preheat")["securityContext"]["runAsUser"]
    claims = {claim["metadata"]["name"] for claim in objects.of("PersistentVolumeClaim")}
    for policy in objects.of("ValidatingAdmissionPolicy"):
        said = str(policy["spec"])
        if f"[0, {user}]" not in said or not any(f"'{claim}'" in said for claim in claims):
            yield f"policy {policy['metadata']['name']} speaks of another user or claim than is there"
    if claims and not objects.of("ValidatingAdmissionPolicyBinding"):
        yield "a claim on the store without a policy that holds pods to reading"


# === of the daemon ===


def _store(objects):
    """Whoever mounts the store mounts it read-only and where the daemon has it: `fetch` prints the daemon's path."""
    spec = manifests.pod(objects.daemon)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    ours = {}
    for mount in manifests.container(spec, "preheat")["volumeMounts"]:
        if place := manifests.host_path(objects, "preheat", volumes.get(mount["name"], {})):
            ours[place] = mount["mountPath"]
            if mount.get("readOnly"):
                yield f"preheat: {mount['mountPath']} is read-only"
    for workload in objects.workloads():
        if workload is objects.daemon:
            continue
        namespace, name, theirs = workload["metadata"]["namespace"], workload["metadata"]["name"], manifests.pod(workload)
        for volume in theirs.get("volumes", []):
            place = manifests.host_path(objects, namespace, volume)
            if place is None:
                continue
            for of in manifests.containers(theirs):
                for mount in of.get("volumeMounts", []):
                    if mount["name"] != volume["name"]:
                        continue
                    if ours.get(place) != mount["mountPath"]:
                        yield f"{name}: {of['name']} has {place} at {mount['mountPath']}, the daemon at {ours.get(place)}"
                    if not mount.get("readOnly"):
                        yield f"{name}: {of['name']} may write to {place}"
            if not volume.get("persistentVolumeClaim", {"readOnly": True}).get("readOnly"):
                yield f"{name}: the claim of {volume['name']} is not read-only"


def _settings(objects):
    spec = manifests.pod(objects.daemon)
    of = manifests.container(spec, "preheat")
    _, text = configuration(objects)
    settings = tomllib.loads(text)
    server = settings["server"]
    port = int(server["listen"].rpartition(":")[2])
    if [found["containerPort"] for found in of["ports"]] != [port]:
        yield f"server.listen has port {port}, the container another"
    drain = _seconds(server["drain_timeout"])
    if not spec["terminationGracePeriodSeconds"] > drain + 30:
        yield f"terminationGracePeriodSeconds leaves less than 30 s after server.drain_timeout ({drain} s) for the last syncs"
    mounts = {mount["mountPath"]: mount["name"] for mount in of["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    root = settings["store"]["root"]
    if root not in mounts or "hostPath" not in volumes[mounts[root]]:
        yield f"store.root {root} is no volume of the node"
    tokens = [server["token_file"], *(scope["token_file"] for scope in settings["access"]["scopes"])]
    values = [_file(objects, "preheat", spec, of, path) for path in tokens]
    yield from (f"{path} is not in the Secret" for path, value in zip(tokens, values, strict=True) if value is None)
    if not objects.daemon["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0:
        yield "a rolling update would start a second daemon beside the first"
    handed = manifests.container(spec, "own-directories")["command"]
    if handed[1] != f"{of['securityContext']['runAsUser']}:{of['securityContext']['runAsGroup']}":
        yield "own-directories hands over to another user than the daemon's"
    nodes = {path for path, name in mounts.items() if "hostPath" in volumes.get(name, {})}
    if set(handed[2:]) != nodes:
        yield f"own-directories hands over {handed[2:]}, the daemon has {sorted(nodes)}"
    limit, buffers = size(of["resources"]["limits"]["memory"]), settings.get("transfer", {}).get("memory", "128MiB")
    if limit < size(buffers.removesuffix("B")) + _DAEMON_BYTES:
        yield f"the memory limit does not hold transfer.memory ({buffers}) and the daemon itself"
    if "cpu" in of["resources"]["limits"]:
        yield "a limit of CPU stalls hashing"


def _seconds(text):
    number, unit = re.fullmatch(r"([0-9]+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


# === of every pod ===


def _volumes(objects, namespace, spec):
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    mounted = set()
    for of in manifests.containers(spec):
        places = [mount["mountPath"] for mount in of.get("volumeMounts", [])]
        if len(set(places)) != len(places):
            yield f"{of['name']}: two volumes at one place"
        for mount in of.get("volumeMounts", []):
            mounted.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"{of['name']}: no volume {mount['name']}"
    yield from (f"volume {name} is mounted nowhere" for name in volumes.keys() - mounted)
    for volume in volumes.values():
        if volume.get("hostPath", {}).get("type", "") not in _HOST_PATH_TYPES:
            yield f"volume {volume['name']}: there is no type {volume['hostPath']['type']}"
        if ("configMap" in volume or "secret" in volume) and not manifests.files(objects, namespace, volume):
            yield f"volume {volume['name']}: its ConfigMap or Secret is not there, or is empty"
        if "persistentVolumeClaim" in volume and manifests.host_path(objects, namespace, volume) is None:
            yield f"volume {volume['name']}: no claim, or no volume behind it"
    account = spec.get("serviceAccountName")
    if account and objects.get("ServiceAccount", account, namespace) is None:
        yield f"no ServiceAccount {account}"
    if spec.get("automountServiceAccountToken") is not False:
        yield "it gets a token of the API server"


def _environment(objects, namespace, spec):
    if spec.get("enableServiceLinks") is not False:
        yield "links to services would be taken for settings (PREHEAT_PORT)"
    if any(of["image"].split("/")[-1].split(":")[0] == "engine" for of in manifests.containers(spec)):
        yield "an image is not set"
    daemon = manifests.container(manifests.pod(objects.daemon), "preheat")
    # An address that stands for itself, so that it can be looked for.
    downward = {"status.hostIP": "HOST"}
    for of in manifests.containers(spec):
        try:
            values = manifests.environment(objects, namespace, of, downward)
        except KeyError as absent:
            yield f"{of['name']}: no {absent}"
            continue
        words = manifests.command(of, values, ["preheat"])
        yield from (f"{of['name']}: {word} is not expanded" for word in [*words, *values.values()] if "$(" in word and "preheat" in words)
        if address := values.get("PREHEAT_ADDR"):
            host, port = re.fullmatch(r"http://([^:/]+):([0-9]+)", address).groups()
            reachable = {("HOST", found.get("hostPort")) for found in daemon["ports"]}
            for service in objects.of("Service"):
                meta = service["metadata"]
                reachable |= {(f"{meta['name']}.{meta['namespace']}.svc", port["port"]) for port in service["spec"]["ports"]}
            if (host, int(port)) not in reachable:
                yield f"{of['name']}: no daemon is at {address}"
        if path := values.get("PREHEAT_TOKEN_FILE"):
            token = _file(objects, namespace, spec, of, path)
            scopes = tomllib.loads(configuration(objects)[1])["access"]["scopes"]
            own = manifests.pod(objects.daemon)
            known = [_file(objects, "preheat", own, daemon, scope["token_file"]) for scope in scopes]
            if token is None or token not in known:
                yield f"{of['name']}: {path} is not the token of a scope"


def _resources(objects, namespace, spec):
    for of in manifests.containers(spec):
        resources = of.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        if "memory" not in requests or "memory" not in limits:
            yield f"{of['name']}: no request or no limit of memory"
        elif size(requests["memory"]) > size(limits["memory"]):
            yield f"{of['name']}: requests more memory than its limit"
        elif "fetch" in " ".join([*of.get("command", []), *of.get("args", [])]) and size(limits["memory"]) < _FETCH_BYTES:
            yield f"{of['name']}: a fetch without a daemon would be killed at its limit"


def _probes(spec, routes):
    for of in manifests.containers(spec):
        ports = [port["name"] for port in of.get("ports", [])]
        if len(set(ports)) != len(ports):
            yield f"{of['name']}: two ports of one name"
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if (probe := of.get(kind, {}).get("httpGet")) is None:
                continue
            if probe["port"] not in ports:
                yield f"{of['name']}: {kind} at no port of its own"
            if of["name"] == "preheat" and probe["path"] not in routes:
                yield f"{of['name']}: {kind} at {probe['path']}, which the API does not have"
