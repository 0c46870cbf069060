"""The checks of deploy/ notice what they are for: each row breaks one thing in what is rendered."""

import copy
import unittest

from rig import deployment, manifests, pod_security, queries

ROUTES = {"/livez", "/readyz"}
RENDERED = {}


def spec(objects, daemon=False):
    return manifests.pod(objects.daemon if daemon else objects.engine)


def daemon(objects):
    return manifests.container(spec(objects, daemon=True), "preheat")


def fetch(objects):
    return manifests.container(spec(objects), "preheat")


def settings(before, after):
    def change(objects):
        config = next(each for each in objects.of("ConfigMap") if "config.toml" in each["data"])
        assert before in config["data"]["config.toml"]
        config["data"]["config.toml"] = config["data"]["config.toml"].replace(before, after)

    return change


def entry(objects, name):
    return next(entry for entry in fetch(objects)["env"] if entry["name"] == name)


def volume(objects, name, **kinds):
    found = next(volume for volume in spec(objects)["volumes"] if volume["name"] == name)
    found.clear()
    found.update(name=name, **kinds)


# What is broken, in which kustomization, how, and a part of what must be said.
BREAKS = [
    ("base", lambda o: o.all.append({"kind": "ClusterRole", "metadata": {"name": "x"}}), "kinds: ClusterRole"),
    ("base", lambda o: o.all.append(copy.deepcopy(o.daemon)), "twice"),
    ("base", lambda o: o.of("Namespace")[0]["metadata"]["labels"].clear(), "no Pod Security level"),
    ("base", lambda o: o.of("Service")[0]["metadata"].update(namespace="other"), "no namespace other"),
    ("base", lambda o: o.of("Service")[0]["spec"]["selector"].update(x="y"), "selects 0 workloads"),
    ("base", lambda o: o.of("Service")[0]["spec"]["ports"][0].update(targetPort="htp"), "no port htp"),
    ("base", lambda o: o.of("Service")[0]["spec"].pop("internalTrafficPolicy"), "another node's"),
    ("base", lambda o: o.daemon["spec"]["selector"]["matchLabels"].update(x="y"), "does not match its pods"),
    ("base", lambda o: o.daemon["spec"]["updateStrategy"]["rollingUpdate"].update(maxSurge=1), "second daemon"),
    ("base", lambda o: spec(o, True).update(terminationGracePeriodSeconds=40), "last syncs"),
    ("base", lambda o: spec(o, True).pop("enableServiceLinks"), "links to services"),
    ("base", lambda o: spec(o, True).pop("automountServiceAccountToken"), "token of the API server"),
    ("base", lambda o: spec(o, True).update(serviceAccountName="x"), "no ServiceAccount x"),
    ("base", lambda o: spec(o, True).update(hostNetwork=True), "takes more than it says: hostNetwork"),
    ("base", lambda o: daemon(o)["securityContext"].pop("allowPrivilegeEscalation"), "may gain privileges"),
    ("base", lambda o: daemon(o)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), "adds SYS_ADMIN"),
    ("base", lambda o: daemon(o)["securityContext"].update(runAsUser=1000), "another user than the daemon's"),
    ("base", lambda o: daemon(o)["livenessProbe"]["httpGet"].update(path="/healthz"), "which the API does not have"),
    ("base", lambda o: daemon(o)["readinessProbe"]["httpGet"].update(port="web"), "no port of its own"),
    ("base", lambda o: daemon(o)["ports"][0].update(containerPort=7421), "the container another"),
    ("base", lambda o: daemon(o)["volumeMounts"].append({"name": "x", "mountPath": "/x"}), "no volume x"),
    ("base", lambda o: spec(o, True)["volumes"].append({"name": "x", "emptyDir": {}}), "mounted nowhere"),
    ("base", lambda o: daemon(o)["resources"]["limits"].update(memory="300Mi"), "does not hold transfer.memory"),
    ("base", lambda o: daemon(o)["resources"]["limits"].update(cpu="2"), "limit of CPU"),
    ("base", lambda o: spec(o, True)["volumes"][2]["hostPath"].update(type="Dir"), "no type Dir"),
    ("base", lambda o: o.of("Secret")[0]["data"].pop("models"), "not in the Secret"),
    ("base", settings('root = "/var/lib/preheat"', 'root = "/srv"'), "no volume of the node"),
    ("base", settings('drain_timeout = "30s"', 'drain_timeout = "2m"'), "last syncs"),
    ("overlays/hostpath", lambda o: fetch(o)["volumeMounts"][0].pop("readOnly"), "may write to"),
    ("overlays/hostpath", lambda o: fetch(o)["volumeMounts"][0].update(mountPath="/models"), "the daemon at"),
    ("overlays/hostpath", lambda o: o.get("Namespace", "models")["metadata"]["labels"].update(
        {"pod-security.kubernetes.io/enforce": "baseline"}), "does not pass the level"),
    ("overlays/hostpath", lambda o: fetch(o)["resources"]["limits"].update(memory="32Mi"), "more memory than its limit"),
    ("overlays/hostpath", lambda o: fetch(o)["resources"].update(requests={"memory": "1Mi"}, limits={"memory": "32Mi"}), "would be killed"),
    ("overlays/init-container", lambda o: daemon(o)["ports"][0].pop("hostPort"), "no daemon is at"),
    ("overlays/init-container", lambda o: entry(o, "MODEL")["valueFrom"]["configMapKeyRef"].update(key="x"), "key x"),
    ("overlays/init-container", lambda o: fetch(o)["env"].remove(entry(o, "MODEL")), "is not expanded"),
    ("overlays/init-container", lambda o: fetch(o)["env"].reverse(), "is not expanded"),
    ("overlays/init-container", lambda o: o.get("Secret", spec(o)["volumes"][0]["secret"]["secretName"])["data"].update(
        token="b3RoZXI="), "not the token of a scope"),
    ("overlays/init-container", lambda o: spec(o)["securityContext"].pop("runAsNonRoot"), "may be root"),
    ("overlays/init-container", lambda o: spec(o)["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    ("overlays/init-container", lambda o: volume(o, "models", nfs={"server": "x"}), "models is a nfs"),
    ("overlays/persistent-volume", lambda o: entry(o, "PREHEAT_ADDR").update(value="http://preheat.other.svc:7420"), "no daemon is at"),
    ("overlays/persistent-volume", lambda o: volume(o, "store", persistentVolumeClaim={"claimName": "preheat-store"}), "not read-only"),
    ("overlays/persistent-volume", lambda o: volume(o, "store", persistentVolumeClaim={"claimName": "x", "readOnly": True}), "no claim"),
    ("overlays/persistent-volume", lambda o: o.of("PersistentVolumeClaim")[0]["spec"].update(volumeName="x"), "do not name each other"),
    ("overlays/persistent-volume", lambda o: o.of("PersistentVolume")[0]["spec"].update(accessModes=["ReadWriteMany"]), "differ in accessModes"),
    ("overlays/persistent-volume", lambda o: o.of("PersistentVolume")[0]["spec"]["nodeAffinity"]["required"].update(
        nodeSelectorTerms=[]), "other nodes than the daemon"),
    ("overlays/persistent-volume", lambda o: o.of("PersistentVolume")[0]["spec"]["hostPath"].update(path="/srv"), "the daemon at None"),
    ("overlays/persistent-volume", lambda o: o.of("ValidatingAdmissionPolicyBinding")[0]["spec"].update(policyName="x"), "names no policy"),
    ("overlays/persistent-volume", lambda o: o.of("PersistentVolumeClaim")[0]["metadata"].update(name="other"), "another user or claim"),
]  # fmt: skip


class DeploymentTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if manifests.kubectl() is None:
            raise unittest.SkipTest("no kubectl (scripts/setup installs it)")
        for what in manifests.BASES:
            RENDERED[what] = manifests.render(what)

    def problems(self, what, change):
        objects = manifests.Objects(copy.deepcopy(RENDERED[what].all))
        change(objects)
        return deployment.problems(objects, what, ROUTES)

    def test_what_is_rendered_holds(self):
        for what in manifests.BASES:
            self.assertEqual(self.problems(what, lambda objects: None), [], what)

    def test_every_break_is_noticed(self):
        for number, (what, change, said) in enumerate(BREAKS):
            with self.subTest(number=number, what=what, said=said):
                self.assertIn(said, "; ".join(self.problems(what, change)))


class PodSecurityTest(unittest.TestCase):
    def test_levels(self):
        bare = {"containers": [{"name": "a"}]}
        self.assertEqual(list(pod_security.violations(bare, "privileged")), [])
        self.assertEqual(list(pod_security.violations(bare, "baseline")), [])
        self.assertEqual(len(list(pod_security.violations(bare, "restricted"))), 4)
        wild = {
            "hostPID": True,
            "securityContext": {"sysctls": [{"name": "kernel.msgmax"}]},
            "containers": [{"name": "a", "securityContext": {"privileged": True, "seccompProfile": {"type": "Unconfined"}}, "ports": [{"hostPort": 1}]}],
        }
        self.assertEqual(len(list(pod_security.violations(wild, "baseline"))), 5)


class QueriesTest(unittest.TestCase):
    def problems(self, expression):
        return "; ".join(queries.problems("q", expression, queries.known() | queries.FOREIGN))

    def test_good_and_bad_queries(self):
        self.assertEqual(self.problems('sum by (node, which) (rate(preheat_corrupt_total{which="scrub"}[5m])) > 0'), "")
        self.assertEqual(self.problems("histogram_quantile(0.5, sum by (le) (rate(preheat_fetch_seconds_bucket[5m])))"), "")
        for expression, said in [
            ("rate(preheat_corrupt[5m])", "nothing has the metric preheat_corrupt"),
            ("preheat_evicted_total", "nothing has the metric preheat_evicted_total"),
            ("preheat_fetch_seconds", "nothing has the metric"),
            ('preheat_corrupt_total{where="scrub"}', "no label where"),
            ('preheat_corrupt_total{which="nowhere-at-all"}', "no code sets"),
            ("sum by (model) (preheat_models)", "summed by model"),
            ("sum((preheat_models)", "q: "),
            ("kube_pod_info", "nothing has the metric kube_pod_info"),
        ]:
            self.assertIn(said, self.problems(expression), expression)


if __name__ == "__main__":
    unittest.main()
