"""A ValidatingAdmissionPolicy, asked about a pod: its expressions are evaluated here by another implementation of the language
than the API server's."""

import sys
import types

# The package's command line needs six more packages, its evaluator none.
sys.modules.setdefault("cel.cli", types.ModuleType("cel.cli"))
import cel  # noqa: E402


def refusals(policy, pod):
    """The messages with which a policy refuses a pod; none if it does not."""
    spec = policy["spec"]
    asked = {"object": pod}
    if not all(cel.evaluate(condition["expression"], asked) for condition in spec.get("matchConditions", [])):
        return []
    asked["variables"] = {each["name"]: cel.evaluate(each["expression"], asked) for each in spec.get("variables", [])}
    return [each["message"] for each in spec["validations"] if cel.evaluate(each["expression"], asked) is not True]
