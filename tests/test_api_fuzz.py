"""The API's own description, fuzzed: whatever is sent that fits it or not, no server error."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from test_serve import PLAN, running

from softvq.serve.app import Settings
from softvq.serve.limits import Limits
from softvq.serve.wire import ROUTES

EXAMPLES = 20  # of each route
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    store = f"sqlite:///{tmp_path_factory.mktemp('fuzz') / 'softvq.db'}"
    limits = Limits(bytes=100_000, seconds=5)
    with running(Settings(plan=PLAN, store=store, precision="fp32", limits=limits)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("route", ROUTES)
def test_no_server_error(api, route):
    method, path, *_ = ROUTES[route]

    @given(case=api[path][method].as_strategy())
    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=[*HealthCheck],
        phases=[Phase.explicit, Phase.generate], database=None, derandomize=True,
    )  # fmt: skip
    def check(case):
        case.validate_response(case.call(), checks=CHECKS)

    check()
