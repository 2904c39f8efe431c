"""Peers do what their names say, through the interface of our own models."""

import shlex
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from daclip import image
from daclip.degradations import degrade
from daclip.errors import ModelError, PhotoError, UsageError
from daclip.evaluate import peers
from daclip.metrics import psnr


def scene(height: int = 96, width: int = 128) -> np.ndarray:
    """A photo with soft shades and some edges, uint8."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    waves = 0.45 + 0.25 * np.sin(rows / 9) + 0.2 * np.cos(columns / 13) + 0.15 * (columns % 40 > 20)
    return (np.stack([waves, 0.9 * waves, 0.8 * waves + 0.1], axis=2).clip(0, 1) * 255).astype(np.uint8)


def worse(name: str, severity: float = 0.6) -> np.ndarray:
    if name == "noisy":
        noise = np.random.default_rng(2).normal(0, 20, scene().shape)
        return np.clip(scene() + noise, 0, 255).astype(np.uint8)
    if name == "hazy":  # white and even, as the dark channel takes it to be
        return (0.4 * scene() + 0.6 * 235).astype(np.uint8)
    unit = scene().astype(np.float32) / np.float32(255)
    made = degrade(unit, name, severity=severity, rng=np.random.default_rng(2))
    return np.rint(made.pixels * 255).astype(np.uint8)


def restored(peer: str, pixels: np.ndarray, degradation: str = "noisy") -> np.ndarray:
    return peers.find(peer).restore(image.from_array(pixels), degradation).pixels


@pytest.mark.parametrize(
    ("peer", "degradation"),
    [("non-local-means", "noisy"), ("dark-channel", "hazy"), ("telea", "uncompleted")],
)
def test_a_classic_mends_what_it_was_made_for(peer: str, degradation: str) -> None:
    degraded = worse(degradation)
    assert psnr(restored(peer, degraded), scene()) > psnr(degraded, scene()) + 0.5


def test_clahe_spreads_the_lightness_of_a_dark_photo() -> None:
    dark = scene() // 5
    assert restored("clahe", dark).std() > 1.5 * dark.std()


def test_non_local_means_measures_the_noise() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((80, 80, 3), 128.0)
    noisy = np.clip(flat + rng.normal(0, 12, flat.shape), 0, 255).astype(np.uint8)
    assert peers.noise_level(noisy) == pytest.approx(12, rel=0.1)


def test_telea_leaves_a_photo_without_a_hole_alone() -> None:
    answer = peers.find("telea").restore(image.from_array(scene()), "rainy")
    assert answer.is_unchanged


def test_classics_are_told_what_is_wrong() -> None:
    noisy = worse("noisy")
    np.testing.assert_array_equal(restored("classics", noisy), restored("non-local-means", noisy))
    np.testing.assert_array_equal(restored("classics", noisy, "shadowed"), noisy)


def test_a_command_gets_the_photo_and_gives_another(tmp_path: Path) -> None:
    script = tmp_path / "turn around.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom daclip import image\n"
        "pixels = image.read(sys.argv[1]).own[::-1].copy()\n"
        "image.write(image.from_array(pixels), pixels, Path(sys.argv[2]))\n"
    )
    method = peers.command(f"{sys.executable} {shlex.quote(str(script))} {{in}} {{out}}")
    answer = method.restore(image.from_array(scene()), "noisy")
    np.testing.assert_array_equal(answer.pixels, scene()[::-1])
    assert "turn around.py" in method.weights


def test_a_command_that_fails_or_writes_nothing_is_named() -> None:
    photo = image.from_array(scene())
    code = "import sys; sys.exit('no such model')"
    failing = peers.command(f"{sys.executable} -c {shlex.quote(code)} {{in}} {{out}}")
    with pytest.raises(PhotoError, match="ended with 1: no such model"):
        failing.restore(photo, "noisy")
    silent = peers.command(f"{sys.executable} -c pass {{in}} {{out}}")
    with pytest.raises(PhotoError, match=r"wrote no \{out\}"):
        silent.restore(photo, "noisy")
    with pytest.raises(UsageError, match=r"lacks \{in\} or \{out\}"):
        peers.command("tool {in}")
    with pytest.raises(UsageError, match="no program /no/such/tool"):
        peers.command("/no/such/tool {in} {out}")


def test_a_command_that_hangs_is_stopped() -> None:
    code = shlex.quote("import time; time.sleep(60)")
    hanging = peers.command(f"{sys.executable} -c {code} {{in}} {{out}}", timeout=0.5)
    with pytest.raises(PhotoError, match=r"took more than 0.5 s and was stopped; --timeout"):
        hanging.restore(image.from_array(scene()), "noisy")


def test_what_a_command_has_begun_is_stopped_with_it() -> None:
    inner = "import time; time.sleep(61)"
    code = shlex.quote(f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{inner}'])")
    hanging = peers.command(f"{sys.executable} -c {code} {{in}} {{out}}", timeout=2.0)
    with pytest.raises(PhotoError, match=r"took more than 2 s and was stopped; --timeout"):
        hanging.restore(image.from_array(scene()), "noisy")
    left = [each for each in psutil.process_iter(["cmdline"]) if inner in (each.info["cmdline"] or [])]
    assert not psutil.wait_procs(left, timeout=5)[1]


def test_what_opencv_cannot_do_is_an_error_of_the_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    # OpenCV's own refusal of an odd kernel: no photo is known on which a classic fails
    monkeypatch.setitem(peers.CLASSICS, "clahe", lambda pixels, _: cv2.medianBlur(pixels, 2))
    with pytest.raises(PhotoError, match=r"error \(OpenCV"):
        peers.find("clahe").restore(image.from_array(scene()), "low-light")


def test_peers_and_commands_take_a_name(tmp_path: Path) -> None:
    code = shlex.quote("import shutil, sys; shutil.copy(*sys.argv[1:])")
    tool = f"{sys.executable} -c {code} {{in}} {{out}}"
    plain, named = peers.command(tool), peers.command(f"PReNet={tool}")
    assert (plain.name, named.name) == (Path(sys.executable).name, "PReNet")
    assert named.weights == plain.weights
    np.testing.assert_array_equal(named.restore(image.from_array(scene()), "rainy").pixels, scene())
    assert peers.find("nobody=identity").name == "nobody"
    with pytest.raises(UsageError, match=r'no peer "theirs\.pth"'):
        peers.find("mine=theirs.pth")
    tool = tmp_path / "a=b" / "tool"
    tool.parent.mkdir()
    tool.write_text("")
    tool.chmod(0o755)
    assert peers.command(f"{tool} {{in}} {{out}}").name == "tool", "a = further on is no name"


def test_an_unknown_peer_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='no peer "classic"; did you mean "classics"'):
        peers.find("classic")


@pytest.mark.torch
@pytest.mark.slow
def test_a_file_of_another_project_restores_by_spandrel(tmp_path: Path) -> None:
    import torch
    from spandrel.architectures.NAFNet import NAFNet

    torch.manual_seed(0)
    network = NAFNet(width=16, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]).eval()
    torch.save({"params": network.state_dict()}, tmp_path / "theirs.pth")
    odd = scene()[:61, :83]
    method = peers.find(str(tmp_path / "theirs.pth"), device="cpu")
    answer = method.restore(image.from_array(odd), "noisy")
    with torch.inference_mode():
        wanted = network(torch.from_numpy(odd.transpose(2, 0, 1)[None] / np.float32(255))).clamp(0, 1)
    wanted = np.rint(wanted[0].numpy().transpose(1, 2, 0) * 255)
    assert np.abs(answer.pixels - wanted).max() <= 1
    assert (method.name, method.weights[12:]) == ("theirs", ", spandrel NAFNet")


@pytest.mark.torch
@pytest.mark.slow
def test_a_file_that_enlarges_or_is_unknown_is_refused(tmp_path: Path) -> None:
    import torch

    torch.save({"params": {"a.weight": torch.zeros(3)}}, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match="no network that spandrel reads"):
        peers.find(str(tmp_path / "odd.pth"))


@pytest.mark.torch
@pytest.mark.slow
def test_further_networks_are_registered_where_their_package_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    torch.save({"params": {"odd.weight": torch.zeros(3)}}, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match="need `pip install spandrel_extra_arches`"):
        peers.find(str(tmp_path / "odd.pth"))
    # a stub with the interface of the package; its network is spandrel's NAFNet under another sign
    stub = "import spandrel\nfrom spandrel.architectures.NAFNet import NAFNet, NAFNetArch\n"
    stub += "class OddArch(NAFNetArch):\n"
    stub += "    def __init__(self):\n"
    stub += (
        "        spandrel.Architecture.__init__(self, id='Odd', detect=lambda state: 'odd.weight' in state)\n"
    )
    stub += "    def load(self, state):\n"
    stub += "        net = NAFNet(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])\n"
    stub += "        return super().load(net.state_dict())\n"
    stub += "def install(*, ignore_duplicates=False):\n"
    stub += "    odd = spandrel.ArchSupport.from_architecture(OddArch())\n"
    stub += "    return spandrel.MAIN_REGISTRY.add(odd, ignore_duplicates=ignore_duplicates)\n"
    (tmp_path / "spandrel_extra_arches.py").write_text(stub)
    monkeypatch.syspath_prepend(tmp_path)
    assert peers.find(str(tmp_path / "odd.pth")).weights.endswith("spandrel Odd")
    assert peers.find(str(tmp_path / "odd.pth")), "registered once, found twice"
    del sys.modules["spandrel_extra_arches"]
