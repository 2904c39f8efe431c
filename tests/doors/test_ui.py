"""The web page in a real Chromium: photos dropped, looked at and taken home."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from daclip import image
from daclip.cli import run
from toy_model import write_toy_model

pytestmark = pytest.mark.browser

Value = TypeVar("Value")
SECONDS = 60


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One that answers at once, one that takes its time."""
    folder = tmp_path_factory.mktemp("models")
    return [
        str(write_toy_model(folder / "toy")),
        str(write_toy_model(folder / "toysde", "diffusion", steps=100)),
    ]


@pytest.fixture(scope="module")
def address(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by the command in a process of its own."""
    pytest.importorskip("gradio", reason="needs the extra [ui]")
    folder = tmp_path_factory.mktemp("ui")
    temporary = folder / "tmp"
    temporary.mkdir()
    words = [word for model in models for word in ("--model", model)]
    call = [sys.executable, "-m", "daclip", "ui", "--no-open", "--port", str(free_port()), *words]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with (folder / "stderr").open("w") as errors:
        server = subprocess.Popen(
            [*call, "--engine", "onnx"], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    assert server.stdout is not None
    with server.stdout:
        line = server.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), (folder / "stderr").read_text()
        yield line
        server.send_signal(signal.SIGINT)
        assert server.wait(SECONDS) == 130
    assert "Traceback" not in (folder / "stderr").read_text(), (folder / "stderr").read_text()[-4000:]
    assert not list(temporary.glob("daclip-ui-*"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for word in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1150"):
        options.add_argument(word)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # as root, Chromium has none
    folder = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


class Visitor:
    """What a person does with the page, and sees on it."""

    def __init__(self, chrome: Any, address: str) -> None:
        self.chrome = chrome
        self.folder = Path(chrome.capabilities["goog:chromeOptions"].get("prefs", ""))
        chrome.get(address)
        self.wait(lambda: self.all("#photos input[type=file]") and self.all("#told textarea"))

    def all(self, selector: str) -> list[Any]:
        return self.chrome.find_elements("css selector", selector)

    def wait(self, seen: Callable[[], Value]) -> Value:
        """What is seen, once it is there."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                if value := seen():
                    return value
            except (StaleElementReferenceException, IndexError):
                pass
            time.sleep(0.1)
        raise AssertionError(f"not seen in {SECONDS} s; the page says: {self.told!r}")

    @property
    def told(self) -> str:
        return self.all("#told textarea")[0].get_attribute("value")

    @property
    def pictures(self) -> list[str]:
        return [one.get_attribute("src") for one in self.all("#slider img")]

    def drop(self, *photos: Path) -> None:
        self.all("#photos input[type=file]")[0].send_keys("\n".join(map(str, photos)))

    def wait_until_done(self, photos: int = 1) -> list[str]:
        """The lines about the photos."""
        is_done = re.compile(r", \d+\.\d s$|: .+; .+$")
        self.wait(lambda: len(self.told.splitlines()) == photos and is_done.search(self.told))
        return self.told.splitlines()

    def click(self, selector: str) -> None:
        element = self.wait(lambda: [one for one in self.all(selector) if one.is_enabled()])[0]
        self.chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def move_strength_to_the_middle(self) -> str:
        """Press the slider half way; the number it shows then."""
        before = self.pictures
        self.click("#strength input[type=range]")
        self.wait(lambda: len(self.pictures) == 2 and self.pictures != before)
        return self.all("#strength input[type=number]")[0].get_attribute("value")

    def choose(self, name: str) -> None:
        before = self.pictures
        self.click("#shown input")
        option = self.wait(lambda: [one for one in self.all("[role=option]") if one.text.endswith(name)])[0]
        option.click()
        self.wait(lambda: len(self.pictures) == 2 and self.pictures != before)

    def download(self, folder: Path) -> Path:
        self.chrome.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
        )
        self.click("#download:not([disabled])")
        return self.wait(
            lambda: [path for path in folder.iterdir() if path.suffix not in (".crdownload", ".tmp")]
        )[0]


@pytest.fixture
def visitor(chromium: Any, address: str) -> Visitor:
    return Visitor(chromium, address)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Dark photos: a JPEG with EXIF, a 16-bit TIFF, a grey PNG; and a text that is none."""
    from PIL import Image

    rows, columns = np.mgrid[:90, :140]
    dark = np.stack([rows, columns, 60 + 0 * rows], axis=2).astype(np.uint8) // 3
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.fromarray(dark).save(tmp_path / "dark.jpg", quality=95, exif=exif)
    deep = dark.astype(np.uint16) * 257 + 3
    image.write(image.from_array(deep), deep, tmp_path / "deep.tif")
    Image.fromarray(dark[:, :, 0]).save(tmp_path / "grey.png")
    (tmp_path / "text.jpg").write_text("no photo")
    return tmp_path


def by_command(photo: Path, model: str, *words: str) -> bytes:
    """What `daclip restore` writes for the photo."""
    target = photo.with_name(f"by-command{photo.suffix}")
    call = [
        "restore",
        str(photo),
        "-o",
        str(target),
        "--model",
        model,
        "--engine",
        "onnx",
        "-q",
        "--overwrite",
    ]
    assert run([*call, *words]) == 0
    return target.read_bytes()


def test_photos_dropped_in_a_row_are_taken_home_as_the_command_writes_them(
    visitor: Visitor, photos: Path, models: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    visitor.drop(photos / "dark.jpg", photos / "deep.tif")
    lines = visitor.wait_until_done(2)
    assert [line.partition(":")[0] for line in lines] == ["dark.jpg", "deep.tif"]
    assert all("low-light 0." in line or "low-light 1." in line for line in lines)
    assert "low-light" in visitor.all("#words")[0].text
    strength = visitor.move_strength_to_the_middle()
    assert 0.4 < float(strength) < 0.6
    got = visitor.download(tmp_path_factory.mktemp("deep"))
    assert got.name == "deep.restored.tif"
    assert got.read_bytes() == by_command(photos / "deep.tif", models[0], "--strength", strength)
    assert image.read(got).bits == 16
    visitor.choose("dark.jpg")
    got = visitor.download(tmp_path_factory.mktemp("dark"))
    assert got.name == "dark.restored.jpg"
    assert got.read_bytes() == by_command(photos / "dark.jpg", models[0], "--strength", strength)
    assert "a camera" in str(image.read(got).metadata["exif-ifd0-Make"])


def test_before_and_after_lose_nothing_on_the_way_to_the_screen(
    visitor: Visitor, photos: Path, models: list[str]
) -> None:
    visitor.drop(photos / "grey.png")
    visitor.wait_until_done()
    seen = []
    for url in visitor.wait(lambda: visitor.pictures if len(visitor.pictures) == 2 else []):
        with urllib.request.urlopen(url) as answer:
            seen.append(image.read(answer.read()))
    assert {photo.format for photo in seen} == {"png"}
    after = image.read(by_command(photos / "grey.png", models[0]))
    shown = [photo.colours[:, :, 0].astype(int) for photo in seen]
    assert np.array_equal(shown[0], image.read(photos / "grey.png").own[:, :, 0])
    # the file is grey, the screen shows its three equal bands
    assert np.abs(shown[1] - after.own[:, :, 0]).max() <= 1


def test_the_wheel_zooms_and_every_pixel_can_be_seen(visitor: Visitor, photos: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    large = np.full((1800, 2400, 3), 40, np.uint8)
    image.write(image.from_array(large), large, photos / "large.jpg")
    visitor.drop(photos / "large.jpg")
    visitor.wait_until_done()

    def width() -> int:
        return int(visitor.all("#slider img")[1].get_property("naturalWidth"))

    assert visitor.wait(width) == 1200
    visitor.click("#every-pixel input")
    visitor.wait(lambda: width() == 2400)
    # beside the handle, which lies in the middle
    there = ScrollOrigin.from_element(visitor.wait(lambda: visitor.all("#slider img")[0]), -100, 50)
    ActionChains(visitor.chrome).scroll_from_origin(there, 0, -300).perform()
    visitor.wait(lambda: "scale(1.05)" in visitor.all("#slider img")[1].get_attribute("style"))


def test_no_other_machine_is_asked_for_anything(visitor: Visitor, photos: Path, address: str) -> None:
    visitor.drop(photos / "dark.jpg")
    visitor.wait_until_done()
    asked = {
        message["params"]["request"]["url"]
        for entry in visitor.chrome.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    }
    assert len(asked) > 5
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:", "chrome"))]
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    assert not re.findall(r'<(?:script|link|iframe|img)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', page)
    assert '"analytics_enabled":false' in page.replace(" ", "")


def test_a_degradation_can_be_chosen_by_hand(visitor: Visitor, photos: Path, models: list[str]) -> None:
    visitor.drop(photos / "dark.jpg")
    visitor.wait_until_done()
    visitor.click(
        "#task input[value=noisy]"
        if visitor.all("#task input[value=noisy]")
        else "#task label:nth-of-type(2) input"
    )
    visitor.click("#again")
    visitor.wait(lambda: "noisy" in visitor.told and visitor.told.endswith(" s"))
    assert "low-light" not in visitor.told


def test_a_long_run_shows_how_far_it_is_and_can_be_stopped(visitor: Visitor, photos: Path) -> None:
    visitor.click("#kind label:nth-of-type(2) input")
    large = np.full((1500, 2000, 3), 40, np.uint8)
    image.write(image.from_array(large), large, photos / "large.jpg")
    visitor.drop(photos / "large.jpg", photos / "grey.png")
    # Gradio draws the bar over the box of lines
    visitor.wait(lambda: re.search(r"large.jpg \(1 of 2\) - \d", visitor.all("#told")[0].text))
    visitor.click("#stop")
    visitor.wait(lambda: "stopped" in visitor.told)
    assert visitor.told.splitlines() == ["large.jpg: stopped", "grey.png: not begun"]


def test_what_is_no_photo_says_so_and_the_others_are_done(visitor: Visitor, photos: Path) -> None:
    visitor.drop(photos / "text.jpg", photos / "dark.jpg")
    lines = visitor.wait_until_done(2)
    assert lines[0].startswith("text.jpg: not a picture")
    assert lines[1].startswith("dark.jpg: low-light")


def test_an_example_is_a_click_away(visitor: Visitor) -> None:
    visitor.click("#examples button.thumbnail-item, #examples button")
    assert visitor.wait_until_done()[0].partition(":")[0].endswith(".jpg")
    assert len(visitor.pictures) == 2


def test_a_port_that_is_taken_is_said(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="needs the extra [ui]")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        call = [sys.executable, "-m", "daclip", "ui", "--no-open", "--port", port, "--model", models[0]]
        done = subprocess.run([*call, "--engine", "onnx"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: nothing can listen at 127.0.0.1:{port}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("gradio_api/file=http://127.0.0.1:1/photo.png", None),
        ("gradio_api/proxy=http://127.0.0.1:1/photo.png", None),
        (
            "gradio_api/queue/join",
            {"data": [[{"path": "http://127.0.0.1:1/a.png", "meta": {}}]], "fn_index": 0},
        ),
    ],
)
def test_the_page_fetches_nothing_that_a_request_names(address: str, path: str, body: Any) -> None:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data=data, headers={"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    with refused.value as answer:
        assert answer.code == 403
        assert b"fetches nothing" in answer.read()
