"""Make the pictures of docs/ui.md: the page in a headless Chromium, and a trust report.

python examples/ui_pictures.py      needs the extra [ui], selenium, Debian's chromium and chromium-driver
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyvips
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "src" / "daclip" / "photos"


def chromium() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    words = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1250"]
    for word in [*words, *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(word)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def picture(chrome: webdriver.Chrome, name: str) -> None:
    shot = pyvips.Image.new_from_buffer(chrome.get_screenshot_as_png(), "")
    shot = shot.flatten(background=255) if shot.hasalpha() else shot
    shot.write_to_file(str(ROOT / "docs" / f"{name}.webp"), Q=80)


def drop(chrome: webdriver.Chrome, *names: str) -> None:
    """Drop example photos on the page and wait for the last one's line."""
    wait = WebDriverWait(chrome, 300)
    wait.until(lambda _: chrome.find_elements("css selector", "#photos input[type=file]"))
    paths = [str(next(PHOTOS.glob(f"{name}.*"))) for name in names]
    chrome.find_element("css selector", "#photos input[type=file]").send_keys("\n".join(paths))
    told = "#told textarea"
    wait.until(
        lambda _: (
            (text := chrome.find_element("css selector", told).get_attribute("value") or "")
            and len(text.splitlines()) == len(names)
            and text.endswith(" s")
        )
    )
    wait.until(lambda _: len(chrome.find_elements("css selector", "#slider img")) == 2)
    time.sleep(3)  # the slider is drawn


def main() -> None:
    call = [sys.executable, "-m", "daclip"]
    chrome = chromium()
    server = subprocess.Popen([*call, "ui", "--no-open"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        chrome.get(address)
        drop(chrome, "rainy")
        picture(chrome, "ui")
        chrome.get(address)
        drop(chrome, "low-light", "noisy", "hazy")
        picture(chrome, "ui_several")
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "rainy.restored.jpg"
            words = ["restore", "rainy.jpg", "-o", str(result), "--report", "-q"]
            subprocess.run([*call, *words], cwd=PHOTOS, check=True)
            chrome.get(f"file://{next(Path(folder).glob('*.html'))}")
            picture(chrome, "report")
    finally:
        server.terminate()
        server.wait()
        chrome.quit()


if __name__ == "__main__":
    main()
