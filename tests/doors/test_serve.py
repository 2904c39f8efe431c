"""`daclip serve`: a real process on a free port, asked by real clients."""

import io
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra [serve]")
import httpx
from serving import Server, running, wait_for

pytestmark = pytest.mark.slow


def coded(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as photo:
        return np.asarray(photo)


DARK = np.random.default_rng(0).integers(0, 50, (60, 80, 3)).astype(np.uint8)


SLOW = coded(np.full((900, 1200, 3), 30, np.uint8))
"""A photo of few bytes and many pixels, on which 100 steps take a while."""


@pytest.fixture(scope="module")
def server(toy: Path) -> Generator[Server, None, None]:
    with running(toy, "--max-pixels", "0.1MP", "--max-bytes", "200KB") as server:
        yield server


@pytest.fixture
def clean() -> bytes:
    from skimage import data

    return coded(data.astronaut()[:200, :260])


def test_a_photo_comes_back_restored_in_its_own_format(server: Server) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    answer = server.post("/v1/restore", coded(DARK, "JPEG", exif=exif, quality=95))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.headers["x-daclip-action"] == "restored"
    assert answer.headers["x-daclip-detected"] == "low-light=1.00"
    assert re.fullmatch(r"toy; sha256=[0-9a-f]{64}", answer.headers["x-daclip-model"])
    assert pixels_of(answer.content).mean() > 1.3 * DARK.mean()
    with Image.open(io.BytesIO(answer.content)) as photo:
        assert photo.getexif()[0x010F] == "a camera"
    answer = server.post("/v1/restore", coded(DARK), format="webp", strip_metadata="true")
    assert answer.headers["content-type"] == "image/webp"
    assert answer.content[8:12] == b"WEBP"


def test_who_asks_for_json_gets_the_record(server: Server) -> None:
    record = server.post("/v1/restore", coded(DARK), accept="application/json", strength="0.5").json()
    assert (record["schema"], record["action"]) == ("daclip.restore/1", "restored")
    assert (record["width"], record["height"], record["bits"]) == (80, 60, 8)
    assert record["applied"] == [{"name": "low-light", "strength": 0.5}]
    assert record["model"]["name"] == "toy"


def test_a_clean_photo_comes_back_byte_for_byte(server: Server, clean: bytes) -> None:
    answer = server.post("/v1/restore", clean)
    assert (answer.status_code, answer.headers["x-daclip-action"]) == (200, "unchanged")
    assert answer.content == clean


def test_detect_says_what_is_wrong(server: Server) -> None:
    found = server.post("/v1/detect", coded(DARK)).json()
    assert found["detected"][0]["name"] == "low-light"
    assert found["probabilities"][0]["name"] == "low-light"
    assert len(found["probabilities"]) == 3
    assert server.client.get("/v1/models").json()[0]["words"] == ["low-light", "noisy", "clean"]


def test_a_job_is_started_asked_for_fetched_and_forgotten(server: Server) -> None:
    begun = server.post("/v1/jobs", coded(DARK))
    assert begun.status_code == 202
    place = begun.headers["location"]
    wait_for(lambda: server.client.get(place).json()["state"] == "done")
    state = server.client.get(place).json()
    assert (state["part"], state["record"]["action"], state["error"]) == (1.0, "restored", None)
    picture = server.client.get(f"{place}/result")
    assert picture.content == server.post("/v1/restore", coded(DARK)).content
    assert server.client.delete(place).status_code == 204
    assert server.client.get(place).status_code == 404
    place = server.post("/v1/jobs", b"no picture").headers["location"]
    wait_for(lambda: server.client.get(place).json()["state"] == "failed")
    assert server.client.get(place).json()["error"]["kind"] == "not-an-image"
    assert server.client.get(f"{place}/result").status_code == 415


@pytest.mark.parametrize(
    ("data", "fields", "status", "kind", "said"),
    [
        (b"hello", {}, 415, "not-an-image", "looks like text"),
        (b"", {}, 415, "empty", "empty"),
        (coded(DARK, "TIFF"), {}, 415, "unsupported", "TIFF is not accepted here"),
        (coded(np.zeros((400, 300, 3), np.uint8)), {}, 413, "too-large", "above the limit of 0.1"),
        (np.random.default_rng(1).bytes(300_000), {}, 413, "too-large", "above the limit of 0.2 MB"),
        (coded(DARK, "JPEG")[:-400], {}, 422, "truncated", "ends early"),
        (coded(DARK), {"task": "rainn"}, 400, "usage", 'unknown degradation "rainn"'),
        (coded(DARK), {"strength": "2"}, 400, "usage", "not between 0 and 1"),
        (coded(DARK), {"sampler": "mrs"}, 400, "usage", "one pass"),
        (coded(DARK), {"quality": "0"}, 422, "usage", "quality: "),
    ],
)
def test_what_is_wrong_is_a_problem_with_kind_and_hint(
    server: Server, data: bytes, fields: dict[str, str], status: int, kind: str, said: str
) -> None:
    answer = server.post("/v1/restore", data, **fields)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["kind"]) == (status, kind)
    assert said in problem["detail"]


def test_an_upload_without_length_is_counted_as_it_comes(server: Server) -> None:
    def chunks() -> Generator[bytes, None, None]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield bytes(10_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = server.client.post("/v1/restore", content=chunks(), headers=headers)
    assert (answer.status_code, answer.json()["kind"]) == (413, "too-large")


def test_other_pages_and_other_names_are_refused_and_ids_come_back(server: Server) -> None:
    get = server.client.get
    assert get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert get("/health", headers={"X-Request-Id": "no\tgood"}).headers["x-request-id"] != "no\tgood"
    assert get("/v1/models", headers={"Origin": "https://elsewhere.example"}).status_code == 403
    assert get("/v1/models", headers={"Origin": server.address}).status_code == 200
    assert get("/v1/models", headers={"Host": "rebound.example"}).status_code == 403
    assert get("/nothing").json()["kind"] == "missing"


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    page = server.client.get("/", follow_redirects=True)
    assert "Try it" in page.text
    assert re.findall(r"https?://|src=|@import", page.text) == []
    assert "default-src 'none'" in page.headers["content-security-policy"]
    described = server.client.get("/openapi.json").json()
    fields = described["components"]["schemas"]["Body_restore_v1_restore_post"]["properties"]
    assert fields["strength"]["examples"] == ["1", "noisy=0.4"]


def test_prometheus_gets_figures_and_strangers_make_no_labels(server: Server) -> None:
    server.client.get("/made/up")
    text = server.client.get("/metrics").text
    assert re.search(r'daclip_photos_total\{action="restored"\} [1-9]', text)
    assert re.search(r'daclip_requests_total\{route="other",status="404"\} [1-9]', text)
    assert "made/up" not in text
    assert re.search(r"daclip_waiting 0\.0", text)


def test_a_key_is_asked_for_where_one_is_set(toy: Path) -> None:
    with running(toy, env={"DACLIP_API_KEY": "sésame"}) as server:
        answer = server.client.get("/v1/models")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        wrong = server.client.get("/v1/models", headers={"Authorization": "Bearer sesame"})
        assert wrong.status_code == 401
        key = "Bearer sésame".encode()
        assert server.client.get("/v1/models", headers={"Authorization": key}).status_code == 200
        assert server.client.get("/health").status_code == 200


def test_a_full_queue_says_when_to_come_back_and_a_job_can_be_cancelled(toy_sde: Path) -> None:
    with running(toy_sde, "--queue", "1") as server:
        first = server.post("/v1/jobs", SLOW, steps="100").headers["location"]
        wait_for(lambda: server.client.get(first).json()["part"] > 0)
        second = server.post("/v1/jobs", SLOW, steps="100").headers["location"]
        assert server.client.get(second).json()["state"] == "waiting"
        assert server.client.get(f"{second}/result").status_code == 409
        refused = server.post("/v1/restore", coded(DARK))
        assert (refused.status_code, refused.json()["kind"]) == (429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert server.client.get("/ready").status_code == 429
        assert server.client.get("/health").json()["working"] == 1
        for place in (first, second):
            assert server.client.delete(place).status_code == 204
        wait_for(lambda: server.client.get("/ready").status_code == 200)


def test_what_takes_too_long_is_ended(toy_sde: Path) -> None:
    with running(toy_sde, "--timeout", "1") as server:
        answer = server.post("/v1/restore", SLOW, steps="100")
        assert (answer.status_code, answer.json()["kind"]) == (504, "timeout")
        wait_for(lambda: server.client.get("/health").json()["working"] == 0)


def test_a_client_that_leaves_frees_the_worker(toy_sde: Path) -> None:
    with running(toy_sde) as server:
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=server.address, timeout=1) as client:
            client.post("/v1/restore", files={"image": SLOW}, data={"steps": "100"})
        wait_for(lambda: server.client.get("/health").json()["working"] == 0)
        assert "daclip_dropped_total 1.0" in server.client.get("/metrics").text


def test_a_signal_ends_the_server_after_what_it_began(toy_sde: Path) -> None:
    with running(toy_sde) as server, ThreadPoolExecutor(1) as pool:
        photo = coded(np.full((150, 200, 3), 30, np.uint8))
        begun = pool.submit(server.post, "/v1/restore", photo, steps="100")
        wait_for(lambda: server.client.get("/health").json()["working"] == 1)
        server.process.send_signal(signal.SIGTERM)
        assert begun.result().status_code == 200
        assert server.process.wait(20) == 143


def test_many_clients_at_once_get_what_is_declared_and_nothing_else(toy: Path, clean: bytes) -> None:
    photos = [coded(DARK), clean, coded(DARK[:31, :17]), b"broken", coded(DARK, "JPEG")[:-400], b""]
    allowed = [{200, 429}, {200, 429}, {200, 429}, {415, 429}, {422, 429}, {415, 429}]
    with running(toy, "--queue", "4", "--workers", "2") as server, ThreadPoolExecutor(8) as pool:
        statuses = list(
            pool.map(lambda number: server.post("/v1/restore", photos[number % 6]).status_code, range(60))
        )
        assert [s for n, s in enumerate(statuses) if s not in allowed[n % 6]] == []
        assert statuses.count(200) > 5
        assert server.client.get("/health").json() == {
            "status": "alive",
            "version": server.client.get("/health").json()["version"],
            "waiting": 0,
            "working": 0,
        }


def test_a_port_that_is_taken_and_an_open_door_are_said(toy: Path) -> None:
    with running(toy) as server:
        port = server.address.rpartition(":")[2]
        words = [sys.executable, "-m", "daclip", "serve", "--port", port, "--model", str(toy)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"error: 127.0.0.1:{port} cannot be used (address already in use" in done.stderr
