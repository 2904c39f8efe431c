import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import IFDRational

from daclip import image
from daclip.errors import PhotoError, UsageError
from daclip.image import colour, icc, metadata, sniff, vips

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = vips.Image.black(1, 1, bands=3).copy(interpretation="srgb").icc_export(output_profile="p3")
P3 = P3.get("icc-profile-data")
LOSSLESS = ("png", "tiff")
FORMATS = ("jpeg", "png", "tiff", "webp", "avif")
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="a scan"/></rdf:RDF></x:xmpmeta>'
)


def random_pixels(shape, dtype=np.uint8, seed=0):
    values = np.random.default_rng(seed).random(shape)
    return (
        values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)
    )


def encoded(array, suffix=".png", *, fields=None, orientation=None, **options):
    """The bytes of a picture file, by libvips."""
    picture = vips.from_array(array if array.ndim == 3 else array[:, :, None])
    for name, value in (fields or {}).items():
        vips.set_field(picture, name, value)
    if orientation is not None:
        vips.set_field(picture, "orientation", orientation)
    return picture.write_to_buffer(suffix, **options)


def untouched(photo):
    """What a restorer that changes nothing gives back."""
    return colour.quantise(photo.crop(0, 0, photo.height, photo.width), photo.dtype)


def again(photo, pixels=None, *, format=None, **options):
    """The photo after writing (restored or untouched) pixels and reading them."""
    data = image.to_bytes(photo, untouched(photo) if pixels is None else pixels, format=format, **options)
    return image.read(data)


def camera_exif(orientation=1, *, thumbnail=False):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0132] = "Maker (of cameras)", orientation, "2020:01:02 03:04:05"
    inner = exif.get_ifd(0x8769)
    inner[0xA002], inner[0xA003], inner[0x829D], inner[0x927C] = (
        999,
        998,
        IFDRational(28, 10),
        b"a maker's note",
    )
    inner[0x9003] = "2019:12:31 23:59:58"
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2], gps[3], gps[4] = "N", (52.0, 30.0, 12.34), "E", (13.0, 24.0, 0.0)
    return exif


def jpeg_with_metadata(pixels, orientation=1):
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, "JPEG", exif=camera_exif(orientation), icc_profile=SRGB, xmp=XMP, quality=95
    )
    return file.getvalue()


# finding


def test_folders_give_their_photos_sorted_without_hidden_files_and_earlier_results(tmp_path):
    picture = encoded(random_pixels((4, 5, 3)))
    for name in ("b.png", "a.JPG", "no_suffix", ".hidden.png", "a.restored.png", "broken.png"):
        (tmp_path / name).write_bytes(b"" if name == "broken.png" else picture)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "c.png").write_bytes(picture)
    found = image.find_photos([tmp_path])
    assert [path.name for path in found] == ["a.JPG", "b.png", "broken.png", "no_suffix"]
    deep = image.find_photos([str(tmp_path)], recursive=True)
    assert [path.name for path in deep] == ["a.JPG", "b.png", "broken.png", "no_suffix", "c.png"]


def test_a_named_file_is_always_taken_and_only_once(tmp_path):
    (tmp_path / "photo[1].restored.png").write_bytes(encoded(random_pixels((4, 5, 3))))
    (tmp_path / "link.png").symlink_to(tmp_path / "photo[1].restored.png")
    named = tmp_path / "photo[1].restored.png"
    assert image.find_photos([named, str(named), tmp_path / "link.png", tmp_path / "gone.jpg"]) == [
        named,
        tmp_path / "gone.jpg",
    ]


def test_patterns_are_expanded_and_one_without_a_match_stays_for_read_to_report(tmp_path):
    for name in ("b.png", "a.png", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in image.find_photos([tmp_path / "*.png"])] == ["a.png", "b.png"]
    (nothing,) = image.find_photos([tmp_path / "*.tif"])
    with pytest.raises(PhotoError, match="no such file"):
        image.read(nothing)


def test_circular_links_end(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.png").write_bytes(b"x")
    # two, because without a memory of what was seen the ways through them double at each step
    (tmp_path / "inner" / "up").symlink_to(tmp_path)
    (tmp_path / "inner" / "upper").symlink_to(tmp_path)
    assert [path.name for path in image.find_photos([tmp_path], recursive=True)] == ["a.png"]


# reading


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", "empty", "0 bytes"),
        (b"hello, this is a letter\n" * 20, "not-an-image", "looks like text"),
        (b"<!DOCTYPE html><html></html>", "not-an-image", "web page"),
        (b"\x01\x02\x03\x04" * 20, "not-an-image", "not a picture"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported", "SVG"),
        (b"P6\n2 2\n255\n" + bytes(range(1, 13)), "unsupported", "PPM"),
        (b"8BPS\0\1" + bytes(40), "unsupported", "Photoshop"),
    ],
)
def test_what_is_no_photo_is_refused_with_its_kind(tmp_path, content, kind, words):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(PhotoError, match=words) as caught:
        image.read(path)
    assert (caught.value.kind, caught.value.path) == (kind, path)
    with pytest.raises(PhotoError, match=words):
        image.read(content)


def test_files_that_cannot_be_opened_are_photo_errors(tmp_path):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    for path, kind in (
        (tmp_path / "gone.png", "missing"),
        (loop, "unreadable"),
        (tmp_path, "unreadable"),
        (Path("a\0b.png"), "unreadable"),
        (tmp_path / ("long" * 100), "unreadable"),
    ):
        with pytest.raises(PhotoError) as caught:
            image.read(path)
        assert caught.value.kind == kind


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (body, data, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def test_a_bomb_is_refused_by_its_header():
    with pytest.raises(
        PhotoError, match=r"30,000 x 30,000 = 900 megapixels is above the limit of 250"
    ) as caught:
        image.read(png_header(30_000, 30_000))
    assert caught.value.kind == "too-large"
    assert "--max-pixels 901MP" in caught.value.hint
    with pytest.raises(PhotoError, match="a side is above the limit"):
        image.read(png_header(70_000, 2))


@pytest.mark.parametrize(
    "limits",
    [image.Limits(max_bytes=100), image.Limits(max_profile_bytes=100), image.Limits(max_metadata_bytes=100)],
)
def test_each_limit_is_kept(limits):
    with pytest.raises(PhotoError) as caught:
        image.read(jpeg_with_metadata(random_pixels((40, 50, 3))), limits=limits)
    assert caught.value.kind == "too-large"


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_picture_is_an_error_wherever_it_ends(format):
    data = encoded(random_pixels((60, 70, 3)), f".{format}")
    # the last bytes of a PNG hold no pixels
    for end in {*range(1, len(data) - 12, max(1, len(data) // 40))}:
        with pytest.raises(PhotoError) as caught:
            _ = image.read(data[:end]).own
        assert caught.value.kind in ("truncated", "not-an-image") or end < 64, (end, caught.value)
        if end > len(data) // 2:
            assert caught.value.kind == "truncated"
            assert "--allow-truncated" in caught.value.hint


def test_what_is_there_of_a_truncated_picture_can_be_asked_for():
    pixels = random_pixels((300, 200, 3))
    data = encoded(pixels, ".png")
    photo = image.read(data[: len(data) // 2], limits=image.Limits(allow_truncated=True))
    np.testing.assert_array_equal(photo.own[:20], pixels[:20])
    assert photo.own.shape == pixels.shape
    assert any("ends early" in warning for warning in photo.warnings)


def test_a_wrong_extension_is_read_by_content_and_said(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encoded(random_pixels((4, 5, 3))))
    photo = image.read(tmp_path / "photo.jpg")
    assert photo.format == "png"
    assert photo.warnings == ["content is PNG, name says JPEG; read as PNG"]


def test_any_file_name_is_read(tmp_path):
    pixels = random_pixels((4, 5, 3))
    for name in (b"two words.png", b"a[page=1].png", "schön 写真.png".encode(), b"not \xff utf-8.png"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        path.write_bytes(encoded(pixels))
        np.testing.assert_array_equal(image.read(path).own, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
def test_orientation_is_applied_once_and_its_tag_reset(format, orientation):
    pixels = random_pixels((20, 31, 3))
    file = io.BytesIO()
    options = {"lossless": True} if format == "webp" else {"quality": 100, "subsampling": "4:4:4"}
    Image.fromarray(pixels).save(file, format, exif=camera_exif(orientation), **options)
    expected = ImageOps.exif_transpose(Image.open(file))
    photo = image.read(file.getvalue())
    assert (photo.width, photo.height) == expected.size
    assert np.abs(photo.own.astype(int) - np.asarray(expected)).max() <= (
        2 if format in ("jpeg", "avif") else 0
    )
    written = Image.open(io.BytesIO(image.to_bytes(photo, untouched(photo))))
    assert written.size == expected.size
    assert ImageOps.exif_transpose(written).size == expected.size
    assert written.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("mode", "grey", "alpha"),
    [("1", True, False), ("L", True, False), ("LA", True, True), ("P", False, False), ("RGBA", False, True)],
)
def test_every_kind_of_png_is_read(mode, grey, alpha):
    file = io.BytesIO()
    source = Image.fromarray(random_pixels((11, 13, 3))).convert(mode)
    source.save(file, "PNG")
    photo = image.read(file.getvalue())
    assert (photo.is_grey, photo.has_alpha, photo.bits) == (grey, alpha, 8)
    np.testing.assert_array_equal(
        photo.crop(0, 0, 11, 13) * 255, np.asarray(source.convert("RGB"), np.float32)
    )


def test_a_palette_with_transparency_has_alpha():
    file = io.BytesIO()
    Image.fromarray(random_pixels((11, 13, 3))).quantize(8).save(file, "PNG", transparency=3)
    photo = image.read(file.getvalue())
    assert photo.has_alpha
    np.testing.assert_array_equal(photo.own, np.asarray(Image.open(file).convert("RGBA")))


def test_cmyk_is_read_as_srgb_and_said():
    file = io.BytesIO()
    Image.new("CMYK", (20, 10), (255, 0, 0, 0)).save(file, "JPEG")
    photo = image.read(file.getvalue())
    red, green, blue = photo.crop(0, 0, 10, 20).mean(axis=(0, 1))
    assert red < 0.3 < green < blue
    assert any("CMYK" in warning for warning in photo.warnings)
    assert again(photo).own.shape == (10, 20, 3)


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="rgb" if array.ndim == 3 else "minisblack", **options)
    return file.getvalue()


def test_float_tiffs_keep_their_floats_even_above_white():
    pixels = random_pixels((9, 7, 3), np.float32)
    pixels[0, 0] = 3.5
    photo = image.read(tiff(pixels))
    assert (photo.bits, photo.dtype) == (32, np.uint16)
    assert photo.crop(0, 0, 9, 7).max() == 1
    np.testing.assert_array_equal(again(photo).own, pixels)
    assert any("outside" in warning for warning in photo.warnings)


def test_float_tiffs_with_holes_are_filled():
    pixels = random_pixels((9, 7), np.float32)
    pixels[3, 3] = np.nan
    photo = image.read(tiff(pixels))
    assert photo.own[3, 3, 0] == 0
    assert any("not finite" in warning for warning in photo.warnings)


@pytest.mark.parametrize(
    "array", [random_pixels((9, 7), np.uint32), random_pixels((9, 7, 3), np.int16), random_pixels((9, 7, 7))]
)
def test_tiffs_that_are_no_photos_are_unsupported(array):
    data = tiff(array) if array.ndim < 3 or array.shape[2] == 3 else None
    if data is None:
        file = io.BytesIO()
        tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig")
        data = file.getvalue()
    with pytest.raises(PhotoError) as caught:
        image.read(data)
    assert caught.value.kind == "unsupported"


def test_of_several_pages_the_first_is_read_with_a_warning():
    pages = random_pixels((3, 8, 9))
    file = io.BytesIO()
    tifffile.imwrite(file, pages, photometric="minisblack")
    photo = image.read(file.getvalue())
    np.testing.assert_array_equal(photo.own[:, :, 0], pages[0])
    assert photo.warnings == ["holds 3 pictures; only the first is read"]


def test_gif_is_read_and_becomes_png_or_jpeg(tmp_path):
    file = io.BytesIO()
    Image.fromarray(random_pixels((8, 9, 3))).save(file, "GIF")
    photo = image.read(file.getvalue())
    written = image.write(photo, untouched(photo), tmp_path / "a.gif")
    assert written == tmp_path / "a.jpg"
    assert image.read(written).format == "jpeg"
    assert any("cannot be written" in warning for warning in photo.warnings)


def test_high_dynamic_range_coding_is_refused():
    file = io.BytesIO()
    Image.fromarray(random_pixels((16, 16, 3))).save(file, "AVIF")
    data = bytearray(file.getvalue())
    at = data.find(b"colrnclx")
    assert at > 0
    data[at + 10 : at + 12] = (16).to_bytes(2, "big")
    with pytest.raises(PhotoError, match="PQ") as caught:
        image.read(bytes(data))
    assert caught.value.kind == "unsupported"


SAMPLES = {format: encoded(random_pixels((24, 33, 3), seed=5), f".{format}") for format in FORMATS}
SAMPLES["jpeg with metadata"] = jpeg_with_metadata(random_pixels((24, 33, 3)), 6)
SAMPLES["16-bit tiff"] = encoded(random_pixels((24, 33, 4), np.uint16), ".tif", compression="lzw")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
def test_whatever_the_bytes_a_photo_or_a_photo_error_comes_out(name, changes, end, cut):
    data = bytearray(SAMPLES[name])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    data = data[: int(end * len(data))] if cut else data
    try:
        photo = image.read(bytes(data), limits=image.Limits(max_pixels=1_000_000))
        assert photo.own.shape[:2] == (photo.height, photo.width)
        assert 0 <= photo.crop(0, 0, 8, 8).min() <= photo.crop(0, 0, 8, 8).max() <= 1
    except PhotoError:
        pass


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_random_bytes_are_a_photo_error(data):
    for magic in (b"", *sniff._READABLE, b"\x89PNG\r\n\x1a\ncICP", b"\0\0\0\x20ftypavifcolrnclx"):
        with pytest.raises(PhotoError):
            _ = image.read(magic + data).own


# round trips


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LOSSLESS),
    st.tuples(st.integers(1, 17), st.integers(1, 17), st.integers(1, 4)),
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([None, SRGB, P3]),
    st.integers(1, 8),
    st.integers(0, 2**32),
)
def test_a_photo_that_was_not_changed_comes_back_bit_for_bit(format, shape, dtype, icc, orientation, seed):
    pixels = random_pixels(shape, dtype, seed)
    fields = {"icc-profile-data": icc} if icc and shape[2] > 2 else {}
    photo = image.read(encoded(pixels, f".{format}", fields=fields, orientation=orientation))
    back = again(photo)
    np.testing.assert_array_equal(back.own, photo.own)
    assert back.own.dtype == dtype
    assert (back.is_grey, back.has_alpha, back.icc) == (
        shape[2] < 3,
        shape[2] in (2, 4),
        fields.get("icc-profile-data"),
    )
    assert (back.width, back.height) == (photo.width, photo.height)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(LOSSLESS),
    st.tuples(st.integers(1, 17), st.integers(1, 17), st.integers(1, 4)),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 2**32),
)
def test_restored_pixels_are_written_in_depth_and_alpha_is_not_touched(format, shape, dtype, seed):
    photo = image.read(encoded(random_pixels(shape, dtype, seed), f".{format}"))
    restored = random_pixels((*shape[:2], 3), dtype, seed + 1)
    back = again(photo, restored)
    if photo.has_alpha:
        np.testing.assert_array_equal(back.alpha, photo.alpha)
    seen = restored if shape[2] > 2 else np.round(restored @ colour._LUMA)[:, :, None].astype(dtype)
    expected = np.where(photo.alpha[:, :, None] == 0, photo.colours, seen) if photo.has_alpha else seen
    assert np.abs(back.colours.astype(int) - expected).max() <= (0 if shape[2] > 2 else 1)


def test_colours_under_full_transparency_stay_as_they_were():
    pixels = random_pixels((6, 7, 4))
    pixels[:, :3, 3], pixels[:, 3:, 3] = 0, 1
    photo = image.read(encoded(pixels))
    back = again(photo, np.full((6, 7, 3), 200, np.uint8))
    np.testing.assert_array_equal(back.own[:, :3], pixels[:, :3])
    assert (back.own[:, 3:, :3] == 200).all()


def test_display_p3_is_seen_as_srgb_and_written_as_display_p3():
    p3 = np.array([[[0.5, 0.25, 0.75], [0.25, 0.5, 0.5]]])
    matrix = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    linear = np.where(p3 <= 0.04045, p3 / 12.92, ((p3 + 0.055) / 1.055) ** 2.4) @ matrix.T
    srgb = 1.055 * linear ** (1 / 2.4) - 0.055
    photo = image.read(encoded((p3 * 65535 + 0.5).astype(np.uint16), fields={"icc-profile-data": P3}))
    assert photo.converts
    np.testing.assert_allclose(photo.crop(0, 0, 1, 2), srgb, atol=0.003)
    darker = (photo.crop(0, 0, 1, 2) * 0.8 * 65535).astype(np.uint16)
    back = again(photo, darker)
    assert back.icc == P3
    np.testing.assert_allclose(back.crop(0, 0, 1, 2), darker / 65535, atol=0.002)


def profile(curve, *, primaries=None):
    """An ICC profile of Adobe RGB's primaries and one tone curve."""
    xyz = primaries or [(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)]
    tags = {
        f"{c}XYZ": b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in x))
        for c, x in zip("rgb", xyz, strict=True)
    }
    tags |= {f"{c}TRC": curve + bytes(-len(curve) % 4) for c in "rgb"}
    tags |= {
        "wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        "cprt": b"text\0\0\0\0none\0\0\0\0",
    }
    tags |= {"desc": b"desc\0\0\0\0\0\0\0\x02x\0" + bytes(82)}
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += name.encode() + struct.pack(">II", offset + len(body), len(tag))
        body += tag
    rest = struct.pack(">I", len(tags)) + table + body
    head = struct.pack(">I4sI4s4s4s", 128 + len(rest), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    return head + bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48) + rest


def parametric(kind, *numbers):
    return b"para\0\0\0\0" + struct.pack(f">HH{len(numbers)}i", kind, 0, *(round(n * 65536) for n in numbers))


@pytest.mark.parametrize(
    "curve",
    [
        struct.pack(">4sIIH", b"curv", 0, 1, round(2.2 * 256)),
        struct.pack(">4sII", b"curv", 0, 0),
        struct.pack(">4sII64H", b"curv", 0, 64, *((np.linspace(0, 1, 64) ** 1.8 * 65535).astype(int))),
        parametric(0, 1.8),
        parametric(1, 2.0, 1.0, 0.0),
        parametric(2, 2.0, 0.9, 0.1, 0.0),
        parametric(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
        parametric(4, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045, 0.0, 0.0),
    ],
)
def test_matrix_profiles_are_applied_as_littlecms_applies_them(curve):
    profiled = profile(curve)
    assert icc.matrix_profile(profiled)
    # colours that sRGB holds: what lies outside is clipped at different moments
    pixels = (random_pixels((30, 40, 3), np.uint16) // 4 + 24_000).astype(np.uint16)
    for source, target in ((profiled, None), (None, profiled)):
        ours = colour._convert(pixels, source=source, target=target)
        theirs = colour._convert_by_tables(pixels, source=source, target=target)
        assert np.abs(ours.astype(int) - theirs).max() < 300
        assert np.abs(ours.astype(int) - theirs).mean() < 60


@pytest.mark.parametrize(
    "damaged",
    [
        profile(parametric(7, 1.0)),
        profile(b"odd \0\0\0\0\0\0\0\0"),
        profile(struct.pack(">4sII", b"curv", 0, 99)),
        profile(parametric(0, 2.0), primaries=[(0.0, 0.0, 0.0)] * 3),
    ],
)
def test_profiles_whose_numbers_make_no_sense_are_damaged(damaged):
    with pytest.raises(ValueError, match="damaged"):
        colour.applies(damaged)


def test_srgb_profiles_are_not_converted():
    photo = image.read(encoded(random_pixels((5, 6, 3)), fields={"icc-profile-data": SRGB}))
    assert not photo.converts
    assert photo.dtype == np.uint8
    assert image.finish(photo, restored := random_pixels((5, 6, 3), seed=9)) is restored


def test_a_profile_that_does_not_fit_is_dropped_with_a_warning():
    for damaged, words in (
        (SRGB[:16] + b"CMYK" + SRGB[20:], "not one for RGB"),
        (P3[:300] + bytes(180), "is damaged"),
    ):
        file = io.BytesIO()
        Image.fromarray(random_pixels((5, 6, 3))).save(file, "JPEG", icc_profile=damaged)
        photo = image.read(file.getvalue())
        assert photo.icc is None
        assert any(words in warning for warning in photo.warnings)
        assert again(photo).icc is None


def test_ten_bit_avif_stays_ten_bit():
    pixels = random_pixels((16, 17, 3), np.uint16)
    photo = image.read(encoded(pixels, ".avif", bitdepth=10, lossless=True))
    assert (photo.bits, photo.sample_bits, photo.dtype) == (16, 10, np.uint16)
    back = again(photo, quality=100)
    assert back.sample_bits == 10
    assert np.abs(back.own.astype(int) - photo.own).mean() < 65535 * 0.02


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_survive_each_format_and_the_thumbnail_does_not(format):
    photo = image.read(jpeg_with_metadata(random_pixels((20, 31, 3)), 6))
    written = image.to_bytes(photo, untouched(photo), format=format)
    read = Image.open(io.BytesIO(written))
    assert read.info["icc_profile"] == SRGB
    xmp = image.read(written).metadata["xmp-data"]
    assert b"a scan" in xmp
    assert b'Orientation="1"' in xmp
    exif = read.getexif()
    if format == "tiff":
        assert b'Make="Maker (of cameras)"' in xmp
        assert b'DateTimeOriginal="2019-12-31T23:59:58"' in xmp
        assert b'GPSLatitude="52,30.205667N"' in xmp
        return
    inner = exif.get_ifd(0x8769)
    assert exif[0x010F] == "Maker (of cameras)"
    assert (inner[0xA002], inner[0xA003]) == (20, 31)
    assert inner[0x927C] == b"a maker's note"
    assert exif.get_ifd(0x8825)[2] == (52.0, 30.0, 12.34)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_a_tiff_is_kept_although_libvips_does_not_read_it(order):
    file = io.BytesIO()
    tags = [(271, "s", 0, "Maker", True), (306, "s", 0, "2020:01:02 03:04:05", True)]
    tifffile.imwrite(file, random_pixels((20, 31, 3)), photometric="rgb", extratags=tags, byteorder=order)
    photo = image.read(file.getvalue())
    read = Image.open(io.BytesIO(image.to_bytes(photo, untouched(photo), format="jpeg"))).getexif()
    assert (read[271], read[306]) == ("Maker", "2020:01:02 03:04:05")
    file = io.BytesIO()
    Image.fromarray(random_pixels((20, 31, 3))).save(file, "TIFF", exif=camera_exif().tobytes())
    photo = image.read(file.getvalue())
    read = Image.open(io.BytesIO(image.to_bytes(photo, untouched(photo), format="png"))).getexif()
    assert read.get_ifd(0x8769)[0x829D] == 2.8
    assert read.get_ifd(0x8825)[2] == (52.0, 30.0, 12.34)
    assert b"52,30.205667N" in again(photo).metadata["xmp-data"]


def exif_with_thumbnail():
    """EXIF whose second directory holds a JPEG of the old picture."""
    thumbnail = encoded(random_pixels((60, 80, 3)), ".jpg")
    first = struct.pack("<HHHIII", 1, 0x010F, 2, 4, int.from_bytes(b"Own\0", "little"), 26)
    second = struct.pack("<H", 3)
    second += struct.pack("<HHII", 0x0103, 3, 1, 6)
    second += struct.pack("<HHII", 0x0201, 4, 1, 26 + 2 + 36 + 4)
    second += struct.pack("<HHIII", 0x0202, 4, 1, len(thumbnail), 0)
    return b"II*\0\x08\0\0\0" + first + second + thumbnail, thumbnail


def test_the_thumbnail_of_the_old_picture_is_dropped():
    exif, thumbnail = exif_with_thumbnail()
    plain = encoded(random_pixels((20, 31, 3)), ".jpg", keep=0)
    segment = b"\xff\xe1" + (len(exif) + 8).to_bytes(2, "big") + b"Exif\0\0" + exif
    photo = image.read(plain[:2] + segment + plain[2:])
    written = image.to_bytes(photo, untouched(photo))
    assert Image.open(io.BytesIO(written)).getexif()[0x010F] == "Own"
    assert thumbnail[-300:-200] not in written
    assert not Image.open(io.BytesIO(written)).getexif().get_ifd(1)


@pytest.mark.parametrize("format", FORMATS)
def test_stripping_keeps_nothing_but_the_profile(format):
    photo = image.read(jpeg_with_metadata(random_pixels((20, 31, 3))))
    back = again(photo, format=format, strip_metadata=True)
    assert back.icc == SRGB
    assert not [name for name in back.metadata if "data" in name or "Make" in name]


@pytest.mark.parametrize("format", FORMATS)
def test_no_metadata_are_made_up(format):
    photo = image.read(encoded(random_pixels((20, 31, 3)), ".jpg", keep=0))
    written = Image.open(io.BytesIO(image.to_bytes(photo, untouched(photo), format=format)))
    assert "exif" not in written.info


def test_resolution_and_comments_are_kept():
    photo = image.read(encoded(random_pixels((5, 6, 3)), fields={"png-comment-0-Title": "a tree"}))
    assert again(photo).metadata["png-comment-0-Title"] == "a tree"
    file = io.BytesIO()
    Image.fromarray(random_pixels((5, 6, 3))).save(file, "JPEG", dpi=(300, 300))
    photo = image.read(file.getvalue())
    assert Image.open(io.BytesIO(image.to_bytes(photo, untouched(photo)))).info["dpi"] == (300, 300)


@pytest.mark.parametrize("quality", [30, 50, 75, 92, 97])
def test_jpeg_quality_is_estimated_and_never_lowered(quality):
    file = io.BytesIO()
    Image.fromarray(random_pixels((40, 50, 3))).save(file, "JPEG", quality=quality)
    photo = image.read(file.getvalue())
    assert abs(photo.quality - quality) <= 1
    assert again(photo).quality >= max(92, quality - 1)
    assert abs(again(photo, quality=60).quality - 60) <= 1


def test_lossless_webp_stays_lossless():
    pixels = random_pixels((20, 31, 3))
    photo = image.read(encoded(pixels, ".webp", lossless=True))
    np.testing.assert_array_equal(again(photo).own, pixels)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_depth_that_a_format_cannot_hold_is_rounded_and_said(dtype):
    photo = image.read(tiff(random_pixels((9, 7, 3), dtype)))
    back = again(photo, format="png" if dtype == np.float32 else "webp", quality=100)
    assert back.bits == (16 if dtype == np.float32 else 8)
    assert any("were rounded" in warning for warning in photo.warnings)
    if dtype == np.float32:
        np.testing.assert_array_equal(back.own, colour.quantise(photo.own, np.dtype(np.uint16)))


def test_jpeg_fills_transparency_with_white_and_says_so():
    pixels = random_pixels((16, 16, 4))
    pixels[:, :, 3] = 0
    photo = image.read(encoded(pixels))
    assert again(photo, format="jpeg").own.min() > 250
    assert any("transparency" in warning for warning in photo.warnings)


# files


def test_a_file_appears_complete_and_an_old_one_is_not_replaced(tmp_path):
    photo = image.read(encoded(random_pixels((5, 6, 3))))
    target = tmp_path / "new folder" / "a.png"
    assert image.write(photo, untouched(photo), target) == target
    with pytest.raises(PhotoError, match="already there") as caught:
        image.write(photo, untouched(photo), target)
    assert caught.value.kind == "exists"
    assert os.listdir(target.parent) == ["a.png"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_with(target, during):
    with image.new_file(target, overwrite=False) as descriptor:
        os.write(descriptor, b"ours")
        during()


def test_a_file_that_came_in_the_meantime_is_not_replaced(tmp_path):
    target = tmp_path / "a.png"
    with pytest.raises(PhotoError, match="already there"):
        write_with(target, lambda: target.write_bytes(b"theirs"))
    assert target.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a.png"]


def test_overwriting_keeps_permissions_and_time_of_the_input(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(random_pixels((5, 6, 3))))
    path.chmod(0o640)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    link = tmp_path / "link.png"
    link.symlink_to(path)
    photo = image.read(link)
    image.write(photo, np.zeros((5, 6, 3), np.uint8), link, overwrite=True)
    assert link.is_symlink()
    assert image.read(path).own.max() == 0
    assert (path.stat().st_mode & 0o777, path.stat().st_mtime) == (0o640, 1_000_000_000)


def test_a_stop_in_the_middle_leaves_nothing_behind(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_with(tmp_path / "a.png", stop)
    assert os.listdir(tmp_path) == []


FULL_DISK = """
import resource, sys
import numpy as np
from daclip import image
from daclip.errors import PhotoError
photo = image.from_array(np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8))
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
try:
    image.write(photo, photo.own, sys.argv[1])
except PhotoError as error:
    print(error.kind)
"""


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path, format):
    # a limit on the size of files fails in the same place as a full disk, and needs no disk
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / f"a.{format}")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "no-space\n"
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_a_photo_error(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    photo = image.read(encoded(random_pixels((5, 6, 3))))
    with pytest.raises(PhotoError, match="cannot be written") as caught:
        image.write(photo, untouched(photo), tmp_path / "file" / "a.png")
    assert caught.value.kind == "unreadable"


def test_a_photo_left_alone_is_copied_byte_for_byte(tmp_path):
    data = jpeg_with_metadata(random_pixels((20, 31, 3)), 6)
    (tmp_path / "a.jpg").write_bytes(data)
    assert image.copy(tmp_path / "a.jpg", tmp_path / "out" / "a.jpg").read_bytes() == data


def test_values_are_rounded_to_the_nearest_level_and_clipped():
    values = np.array([-0.1, 0.4 / 255, 0.6 / 255, 1.1], np.float32)
    np.testing.assert_array_equal(colour.quantise(values, np.dtype(np.uint8)), [0, 0, 1, 255])


def test_pixels_that_do_not_fit_the_photo_are_refused():
    photo = image.read(encoded(random_pixels((5, 6, 3))))
    for wrong in (np.zeros((6, 5, 3), np.uint8), np.zeros((5, 6, 3), np.uint16)):
        with pytest.raises(UsageError, match="restored pixels are"):
            image.finish(photo, wrong)
    with pytest.raises(UsageError, match="quality 0"):
        image.to_bytes(photo, untouched(photo), format="jpeg", quality=0)


# arrays and Pillow


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4)])
def test_an_array_comes_back_in_kind(dtype, shape):
    array = random_pixels(shape, dtype)
    photo = image.from_array(array)
    back = image.to_array(photo, untouched(photo), ndim=array.ndim)
    np.testing.assert_array_equal(back, array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5,)),
        np.zeros((5, 6, 7), np.uint8),
        np.zeros((0, 6, 3), np.uint8),
        np.zeros((5, 6, 3), np.int64),
        np.full((5, 6, 3), np.nan),
    ],
)
def test_arrays_that_are_no_photos_are_refused(array):
    with pytest.raises(UsageError):
        image.from_array(array)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "P", "1", "CMYK"])
def test_a_pillow_image_comes_back_in_kind(mode):
    source = (
        Image.fromarray(random_pixels((5, 6), np.uint16))
        if mode == "I;16"
        else Image.fromarray(random_pixels((5, 6, 3))).convert(mode)
    )
    source.info["icc_profile"] = SRGB
    photo = image.from_pil(source)
    back = image.to_pil(photo, untouched(photo), like=source)
    kept = {"P": "RGB", "1": "L", "CMYK": "RGB"}.get(mode, mode)
    assert (back.mode, back.size, back.info["icc_profile"]) == (kept, source.size, SRGB)
    np.testing.assert_array_equal(np.asarray(back), np.asarray(source.convert(kept)))


# extras


def heic(pixels, **options):
    file = io.BytesIO()
    pillow_heif.encode("RGB", pixels.shape[1::-1], pixels.tobytes(), file, quality=-1, **options)
    return file.getvalue()


def test_heic_is_read_with_its_metadata_and_becomes_jpeg(tmp_path):
    pixels = np.full((64, 80, 3), (200, 100, 50), np.uint8)
    (tmp_path / "a.heic").write_bytes(heic(pixels, exif=camera_exif().tobytes(), icc_profile=SRGB))
    photo = image.read(tmp_path / "a.heic")
    assert (photo.format, photo.width, photo.height, photo.icc) == ("heic", 80, 64, SRGB)
    assert np.abs(photo.own.astype(int) - pixels).max() < 4
    written = image.write(photo, untouched(photo), tmp_path / "b.heic")
    assert written.name == "b.jpg"
    assert Image.open(io.BytesIO(written.read_bytes())).getexif()[0x010F] == "Maker (of cameras)"


def test_a_damaged_heic_is_a_photo_error():
    data = heic(np.full((64, 80, 3), 99, np.uint8))
    for end in range(20, len(data), len(data) // 10):
        with pytest.raises(PhotoError):
            _ = image.read(data[:end]).own


def dng():
    """A small camera RAW: one plane of Bayer data with the tags that say so."""
    file = io.BytesIO()
    mosaic = np.full((64, 96), 2000, np.uint16)
    tags = [
        (50706, "B", 4, (1, 4, 0, 0), True),
        (50708, "s", 0, "Maker Model", True),
        (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, (0, 1, 1, 2), True),
        (50717, "I", 1, 4095, True),
        (50721, "2i", 9, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1), True),
        (50778, "H", 1, 21, True),
        (50728, "2I", 3, (1, 1, 1, 1, 1, 1), True),
    ]
    tifffile.imwrite(file, mosaic, photometric=32803, extratags=tags)
    return file.getvalue()


def test_camera_raw_is_developed_to_16_bit_and_becomes_tiff(tmp_path):
    photo = image.read(dng())
    assert (photo.format, photo.bits, photo.width, photo.height) == ("raw", 16, 96, 64)
    assert photo.own.shape == (64, 96, 3)
    written = image.write(photo, untouched(photo), tmp_path / "a.dng")
    assert (written.name, image.read(written).bits) == ("a.tif", 16)


@pytest.mark.parametrize(("library", "extra"), [("pillow_heif", "heif"), ("rawpy", "raw")])
def test_without_the_extra_the_install_line_is_given(monkeypatch, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    module = {"pillow_heif": "heic", "rawpy": "raw"}[library]
    monkeypatch.delitem(sys.modules, f"daclip.image.{module}", raising=False)
    monkeypatch.delattr(image, module, raising=False)
    with pytest.raises(PhotoError) as caught:
        image.read(heic(random_pixels((64, 64, 3))) if extra == "heif" else dng())
    assert caught.value.kind == "unsupported"
    assert f'pip install "daclip[{extra}]"' in str(caught.value)


def test_exif_too_large_for_a_jpeg_segment_is_left_out():
    assert metadata.fields_of_exif(bytes(70_000), XMP).keys() == {"xmp-data"}
