"""The OpenAPI document against the application: no request that it allows, or forbids, is answered outside of it."""

import warnings

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance


@pytest.fixture
def document(service, serve):
    with serve(service) as address, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def walk(document, key, examples):
    """Run examples of every operation; the checks are schemathesis' own."""
    seen = set()
    for result in document.get_all_operations():
        operation = result.ok()
        seen.add((operation.method.upper(), operation.path))

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def run(case):
            response = case.call(headers={"authorization": f"Bearer {key}"} if key else None)
            # The document cannot know this server's limits (sizes, steps, names): a valid request may be refused.
            # With a key, schemathesis takes ours for one that it made up, and expects it to be refused.
            excluded = [positive_data_acceptance, *([ignored_auth] if key else [])]
            case.validate_response(response, excluded_checks=excluded)
            assert response.status_code < 500 or response.status_code == 503

        run()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("who", ["acme", "admin", None])
def test_every_operation_keeps_to_the_document(document, keys, who):
    seen = walk(document, getattr(keys, who).key if who else None, 12)
    assert ("POST", "/v1/images/generations") in seen
    assert ("DELETE", "/v1/audit") in seen
    assert len(seen) == 9
