"""Photos on disk and in memory: find, read, crop, write. Steps 3, e and 5 of the path of a photo.

Pixels stay in the photo's own depth; networks see crops as float32 sRGB in [0, 1].
"""

from daclip.image.find import find_photos, is_photo
from daclip.image.limits import DEFAULT_LIMITS, Limits
from daclip.image.photo import Photo, finish, from_array, from_pil, to_array, to_pil
from daclip.image.read import read
from daclip.image.resize import centre_offset, shortest_side, window
from daclip.image.vips import use_threads
from daclip.image.write import (
    TEMPORARY_FILES,
    Format,
    copy,
    new_file,
    output_format,
    output_path,
    possible_paths,
    to_bytes,
    with_notes,
    write,
)

__all__ = [
    "DEFAULT_LIMITS",
    "TEMPORARY_FILES",
    "Format",
    "Limits",
    "Photo",
    "centre_offset",
    "copy",
    "find_photos",
    "finish",
    "from_array",
    "from_pil",
    "is_photo",
    "new_file",
    "output_format",
    "output_path",
    "possible_paths",
    "read",
    "shortest_side",
    "to_array",
    "to_bytes",
    "to_pil",
    "use_threads",
    "window",
    "with_notes",
    "write",
]
