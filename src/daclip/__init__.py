"""DA-CLIP image restoration: says what is wrong with a photo and mends it.

>>> import daclip
>>> restorer = daclip.Restorer("compact")  # doctest: +SKIP
>>> restorer.restore(daclip.read("rain.jpg")).save("dry.jpg")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daclip.checkpoints import from_pretrained
    from daclip.clip import DaClip
    from daclip.detect import Embeddings
    from daclip.diffusion import IRSDE
    from daclip.image import Photo, read
    from daclip.restore import Restorer
    from daclip.vocabulary import DEGRADATIONS

__all__ = ["DEGRADATIONS", "IRSDE", "DaClip", "Embeddings", "Photo", "Restorer", "from_pretrained", "read"]

_HOME = {
    "DEGRADATIONS": "vocabulary",
    "IRSDE": "diffusion",
    "DaClip": "clip",
    "Embeddings": "detect",
    "Photo": "image",
    "Restorer": "restore",
    "from_pretrained": "checkpoints",
    "read": "image",
}


def __getattr__(name: str) -> Any:
    """The public names, loaded on first use, so that `import daclip` stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module 'daclip' has no attribute {name!r}")
    try:
        return getattr(import_module(f"daclip.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        from daclip.errors import missing_extra

        raise missing_extra(error, f"daclip.{name}") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
