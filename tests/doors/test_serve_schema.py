"""The server against its own OpenAPI description: requests that schemathesis makes up."""

import io
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")

import numpy as np
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS as CHECKS_REGISTRY
from serving import running

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "missing_required_header",
]


def picture(format: str, brightness: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), brightness, np.uint8)).save(file, format)
    return file.getvalue()


PICTURES = st.sampled_from(
    [picture(format, light) for format in ("PNG", "JPEG", "TIFF") for light in (20, 200)]
) | st.binary(max_size=200)


@pytest.fixture(scope="module")
def description(toy: Path) -> Generator[Any, None, None]:
    """The description as the server gives it; schemathesis sends its requests there."""
    schemathesis.openapi.format("binary", PICTURES)
    schemathesis.openapi.media_type("application/octet-stream", PICTURES)
    with running(toy, "--queue", "400", "--max-pixels", "0.1MP") as server:
        yield schemathesis.openapi.from_url(f"{server.address}/openapi.json")


OPERATIONS = [
    ("/v1/restore", "POST"),
    ("/v1/detect", "POST"),
    ("/v1/jobs", "POST"),
    ("/v1/jobs/{job_id}", "GET"),
    ("/v1/jobs/{job_id}", "DELETE"),
    ("/v1/jobs/{job_id}/result", "GET"),
    ("/v1/models", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
    ("/metrics", "GET"),
]


def test_every_operation_is_tried(description: Any) -> None:
    described = {(one.ok().path, one.ok().method.upper()) for one in description.get_all_operations()}
    assert described == set(OPERATIONS)


# not by the library's own pytest plugin, which does not run under pytest 9
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_whatever_is_sent_gets_a_declared_answer(
    description: Any, path: str, method: str, mode: GenerationMode
) -> None:
    checks = CHECKS_REGISTRY.get_by_names(CHECKS)

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=description[path][method].as_strategy(generation_mode=mode))
    def try_it(case: Any) -> None:
        case.call_and_validate(checks=checks)

    try:
        try_it()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "only what takes no input cannot be asked wrongly"
