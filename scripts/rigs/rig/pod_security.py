"""The Pod Security Standards, as far as their rules speak of anything that a pod here could say: what the level that a namespace
claims would refuse. https://kubernetes.io/docs/concepts/security/pod-security-standards/"""

from . import manifests

LEVELS = ("privileged", "baseline", "restricted")

# Capabilities that baseline lets a container add; restricted lets it add NET_BIND_SERVICE.
_BASELINE_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP",
    "SETUID", "SYS_CHROOT",
}  # fmt: skip
_RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip


def violations(spec, level):
    """What `level` would refuse in a pod, each as a sentence."""
    found = []
    if level in ("baseline", "restricted"):
        found += _baseline(spec)
    if level == "restricted":
        found += _restricted(spec)
    return found


def _baseline(spec):
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is set"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a hostPath"
    for sysctl in spec.get("securityContext", {}).get("sysctls", []):
        if sysctl["name"] not in _SYSCTLS:
            yield f"sysctl {sysctl['name']} is set"
    for name, context in _contexts(spec):
        if context.get("privileged"):
            yield f"{name} is privileged"
        if context.get("procMount", "Default") != "Default":
            yield f"{name} unmasks /proc"
        if context.get("seccompProfile", {}).get("type") == "Unconfined":
            yield f"{name} has no seccomp profile"
        if context.get("appArmorProfile", {}).get("type") == "Unconfined":
            yield f"{name} has no AppArmor profile"
        for capability in sorted(set(context.get("capabilities", {}).get("add", [])) - _BASELINE_CAPABILITIES):
            yield f"{name} adds {capability}"
    for of in manifests.containers(spec):
        for port in of.get("ports", []):
            if port.get("hostPort"):
                yield f"{of['name']} has the host's port {port['hostPort']}"


def _restricted(spec):
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= _RESTRICTED_VOLUMES | {"hostPath"}:
            yield f"volume {volume['name']} is a {', '.join(sorted(kinds))}"
    whole = spec.get("securityContext", {})
    for of in manifests.containers(spec):
        name, own = of["name"], of.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges"
        if not own.get("runAsNonRoot", whole.get("runAsNonRoot")):
            yield f"{name} may be root (runAsNonRoot)"
        if own.get("runAsUser", whole.get("runAsUser")) == 0:
            yield f"{name} is user 0"
        if own.get("seccompProfile", whole.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name} names no seccomp profile"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []):
            yield f"{name} keeps capabilities"
        for capability in sorted(set(capabilities.get("add", [])) & _BASELINE_CAPABILITIES - {"NET_BIND_SERVICE"}):
            yield f"{name} adds {capability}"
    if whole.get("runAsUser") == 0:
        yield "the pod is user 0"


def _contexts(spec):
    yield "the pod", spec.get("securityContext", {})
    for of in manifests.containers(spec):
        yield of["name"], of.get("securityContext", {})
