"""The conformance kit: does an adapter, a detector, a policy, a judge or a baseline keep the contract?

    from uvr_core.testing import Example, check_adapter
    check_adapter(MYDIT, lambda: Example(tiny_model(), inputs))

Each function runs all of its checks, returns a Conformance, and raises ConformanceError (which carries it) if one
failed. `expected_failures={"name of a check": "why"}` lets a check fail; a listed check that passes is itself reported.
No test framework is needed.
"""

from .adapter import check_adapter
from .baseline import check_baseline
from .detector import check_detector
from .example import Example, patches
from .judge import check_judge
from .policy import check_policy
from .suite import Conformance, Outcome, Status

__all__ = [
    "Conformance",
    "Example",
    "Outcome",
    "Status",
    "check_adapter",
    "check_baseline",
    "check_detector",
    "check_judge",
    "check_policy",
    "patches",
]
