"""What a photo may be at most, and a file that looks like one: known before a pixel is decoded."""

from dataclasses import dataclass
from pathlib import Path

from daclip.errors import PhotoError, PhotoErrorKind

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a photo may be at most; checked on the header, before a pixel is decoded.

    Args:
        max_pixels: width x height.
        max_side: of either side, in pixels.
        max_bytes: of the file.
        max_profile_bytes: of the ICC profile.
        max_metadata_bytes: of EXIF, XMP and IPTC together.
        allow_truncated: read what is there of a picture that ends early, with a warning.
        formats: kinds that are read, as in `Photo.format`; None for all.
    """

    max_pixels: int = 250_000_000
    max_side: int = 65_535
    max_bytes: int = 2048 * MIB
    max_profile_bytes: int = 4 * MIB
    max_metadata_bytes: int = 16 * MIB
    allow_truncated: bool = False
    formats: tuple[str, ...] | None = None


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file or bytes that look like a picture of a known kind, before it is opened."""

    source: Path | bytes
    path: Path | None
    kind: str
    head: bytes
    size_bytes: int

    def error(self, kind: PhotoErrorKind, message: str, *, hint: str = "") -> PhotoError:
        """The PhotoError about this file."""
        return PhotoError(kind, self.path, message, hint=hint)


def check_size(found: Found, width: int, height: int, limits: Limits) -> None:
    """Raise PhotoError `too-large` for a picture that would not fit the limits when decoded."""
    if width * height > limits.max_pixels:
        megapixels, limit = width * height / 1e6, limits.max_pixels / 1e6
        raise found.error(
            "too-large",
            f"{width:,} x {height:,} = {megapixels:,.0f} megapixels is above the limit of {limit:,g}",
            hint=f"raise it with --max-pixels {int(megapixels) + 1}MP",
        )
    if max(width, height) > limits.max_side:
        raise found.error(
            "too-large", f"{width:,} x {height:,}: a side is above the limit of {limits.max_side:,} pixels"
        )


def check_metadata(found: Found, icc_bytes: int, other_bytes: int, limits: Limits) -> None:
    """Raise PhotoError `too-large` for a colour profile or metadata beyond any real one."""
    for name, size, limit in (
        ("colour profile", icc_bytes, limits.max_profile_bytes),
        ("metadata", other_bytes, limits.max_metadata_bytes),
    ):
        if size > limit:
            raise found.error(
                "too-large",
                f"{name} of {size / MIB:.1f} MiB is above the limit of {limit / MIB:g}",
                hint="remove it from the file",
            )
