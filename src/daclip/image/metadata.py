"""What travels with a photo besides its pixels: EXIF, XMP, IPTC, comments; and how a JPEG was packed."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as Xml

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from daclip.image import exif as exif_block
from daclip.image import vips

Fields = dict[str, bytes | str | int]

_KEPT = ("exif-", "png-comment-", "xmp-data", "iptc-data", "resolution-unit")
# the directory of the thumbnail, which shows the degraded photo
_DROPPED = "exif-ifd1-"


def fields_of(image: vips.Image) -> Fields:
    """The metadata of an opened image, under libvips' field names; without the thumbnail."""
    kept: Fields = {}
    for name in image.get_fields():
        if name.startswith(_KEPT) and not name.startswith(_DROPPED):
            kept[name] = cast("bytes | str | int", image.get(name))
    for name, change in (("xmp-data", _upright), ("exif-data", exif_block.without_thumbnail)):
        if isinstance(value := kept.get(name), bytes):
            kept[name] = change(value)
    return kept


def size_bytes(image: vips.Image) -> int:
    """Bytes of EXIF, XMP and IPTC in an opened image."""
    return sum(len(vips.blob(image, name) or b"") for name in ("exif-data", "xmp-data", "iptc-data"))


def fields_of_exif(exif: bytes | None, xmp: bytes | None) -> Fields:
    """The same fields from EXIF and XMP that another library read; EXIF above 65,000 bytes is left out."""
    body = exif[6:] if exif and exif.startswith(b"Exif\0\0") else exif
    fields: Fields = {"xmp-data": _upright(xmp)} if xmp else {}
    if not body or len(body) > 65_000:
        return fields
    # libvips parses EXIF only while it loads a file, so it gets the smallest JPEG with this EXIF inside
    pixel = vips.Image.black(1, 1).write_to_buffer(".jpg", keep=0)
    segment = b"\xff\xe1" + (len(body) + 8).to_bytes(2, "big") + b"Exif\0\0" + body
    try:
        carrier = vips.Image.new_from_buffer(pixel[:2] + segment + pixel[2:], "")
        return fields_of(carrier) | fields
    except vips.Error:
        return fields


def put(
    image: vips.Image, fields: Mapping[str, bytes | str | int], *, pixels_per_mm: tuple[float, float]
) -> vips.Image:
    """A copy of the image that carries the fields and the resolution, marked upright."""
    result = image.copy(xres=pixels_per_mm[0], yres=pixels_per_mm[1])
    for name, value in fields.items():
        vips.set_field(result, name, value)
    vips.set_field(result, "orientation", 1)
    return result


def jpeg_quality(source: Path | bytes) -> int | None:
    """Quality 1..100 of a JPEG by the scale of libjpeg, from the sum of its luma table; None without one."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        table = _luma_table(file)
    if table is None:
        return None
    scale = 100 * sum(table) / _LIBJPEG_LUMA_SUM
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return min(100, max(1, round(quality)))


_LIBJPEG_LUMA_SUM = 3685
"""Sum of the 64 numbers of the table that libjpeg calls quality 50."""


def _luma_table(file: io.BufferedIOBase) -> list[int] | None:
    file.seek(2)
    while (head := file.read(4)) and len(head) == 4 and head[0] == 0xFF and head[1] != 0xDA:
        length = int.from_bytes(head[2:], "big") - 2
        if head[1] != 0xDB:
            file.seek(length, io.SEEK_CUR)
            continue
        body = file.read(length)
        if body and body[0] & 0x0F == 0:
            wide = 2 if body[0] >> 4 else 1
            values = body[1 : 1 + 64 * wide]
            return [int.from_bytes(values[i : i + wide], "big") for i in range(0, len(values), wide)]
    return None


def _upright(xmp: bytes) -> bytes:
    """The XMP with its own orientation reset, as attribute or element."""
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>))[2-8]", rb"\g<1>1", xmp)


_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": _RDF,
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "aux": "http://ns.adobe.com/exif/1.0/aux/",
    "daclip": "urn:daclip:restored:1#",
}
_XMP_NAMES = {
    "exif-ifd0-Make": "tiff:Make",
    "exif-ifd0-Model": "tiff:Model",
    "exif-ifd0-Artist": "tiff:Artist",
    "exif-ifd0-Copyright": "tiff:Copyright",
    "exif-ifd0-ImageDescription": "tiff:ImageDescription",
    "exif-ifd0-DateTime": "xmp:ModifyDate",
    "exif-ifd2-DateTimeOriginal": "exif:DateTimeOriginal",
    "exif-ifd2-DateTimeDigitized": "exif:DateTimeDigitized",
    "exif-ifd2-ExposureTime": "exif:ExposureTime",
    "exif-ifd2-FNumber": "exif:FNumber",
    "exif-ifd2-ISOSpeedRatings": "exif:ISOSpeedRatings",
    "exif-ifd2-FocalLength": "exif:FocalLength",
    "exif-ifd2-LensModel": "aux:Lens",
    "exif-ifd3-GPSLatitude": "exif:GPSLatitude",
    "exif-ifd3-GPSLongitude": "exif:GPSLongitude",
}


def xmp_with_exif(fields: Mapping[str, bytes | str | int]) -> bytes | None:
    """The XMP with the main EXIF tags added where it lacks them: TIFF files written by libvips hold no EXIF.

    XMP that cannot be parsed is kept as it is.
    """
    tags = {xmp: text for exif, xmp in _XMP_NAMES.items() if (text := _xmp_text(exif, fields))}
    xmp = fields.get("xmp-data")
    if not tags or not isinstance(xmp, bytes | None):
        return xmp if isinstance(xmp, bytes) else None
    if (parsed := _parsed(xmp)) is None:
        return xmp
    root, rdf = parsed
    known = {name for element in rdf.iter() for name in (element.tag, *element.attrib)}
    _describe(rdf, {_full(name): text for name, text in tags.items() if _full(name) not in known})
    return Xml.tostring(root, encoding="utf-8")


def xmp_with_notes(xmp: bytes | None, notes: Mapping[str, str]) -> bytes | None:
    """The XMP with what this program has to say, under the prefix `daclip`; what it said before goes.

    XMP that cannot be parsed is kept as it is.
    """
    if (parsed := _parsed(xmp)) is None:
        return xmp
    root, rdf = parsed
    own = f"{{{_NAMESPACES['daclip']}}}"
    for element in list(rdf):
        for name in [name for name in element.attrib if name.startswith(own)]:
            del element.attrib[name]
        if not len(element) and set(element.attrib) <= {_full("rdf:about")}:
            rdf.remove(element)
    _describe(rdf, {own + name: text for name, text in notes.items()})
    return Xml.tostring(root, encoding="utf-8")


def _parsed(xmp: bytes | None) -> tuple[Xml.Element, Xml.Element] | None:
    """The root and its RDF, new ones for no XMP; None for XMP that cannot be parsed."""
    for prefix, uri in _NAMESPACES.items():
        Xml.register_namespace(prefix, uri)
    empty = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="%s"/></x:xmpmeta>' % _RDF.encode()
    try:
        root = defusedxml.ElementTree.fromstring(xmp or empty)
    except (Xml.ParseError, DefusedXmlException, ValueError):
        return None
    rdf = root if root.tag == f"{{{_RDF}}}RDF" else root.find(f"{{{_RDF}}}RDF")
    return None if rdf is None else (root, rdf)


def _describe(rdf: Xml.Element, attributes: Mapping[str, str]) -> None:
    Xml.SubElement(rdf, _full("rdf:Description"), {_full("rdf:about"): "", **attributes})


def _full(name: str) -> str:
    prefix, _, local = name.partition(":")
    return f"{{{_NAMESPACES[prefix]}}}{local}"


def _xmp_text(name: str, fields: Mapping[str, Any]) -> str | None:
    """One EXIF value in XMP's spelling; libvips says `28/10 (f/2.8, Rational, 1 components, 8 bytes)`."""
    value = fields.get(name)
    if not isinstance(value, str):
        return None
    said_twice = re.match(r"^(.*) \(\1, ASCII, ", value, re.DOTALL)
    text = said_twice[1] if said_twice else value.partition(" (")[0].strip()
    if "DateTime" in name:
        return re.sub(r"^(\d{4}):(\d\d):(\d\d) ", r"\1-\2-\3T", text)
    if "GPS" in name:
        return _gps_text(text, str(fields.get(f"{name}Ref", "")))
    return text


def _gps_text(text: str, reference: str) -> str | None:
    """`52/1 30/1 1234/100` and `N` as XMP's `52,30.205667N`; None where the numbers make no sense."""
    try:
        degrees, minutes, seconds = (int(a) / int(b) for a, b in (part.split("/") for part in text.split()))
    except (ValueError, ZeroDivisionError):
        return None
    return f"{degrees:.0f},{minutes + seconds / 60:.6f}{reference[:1]}"
