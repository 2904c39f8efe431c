"""Captions for clean photos, for the content half of DA-CLIP's training (PAPER 1.4).

A captioner gives a caption for each photo, or None: a model (`image_to_text.captioner`, extra [captions]), a
caption file, the photos' own tags, or nothing. `write` puts them where `daclip.data` reads them.
"""

from daclip.captions.sources import Captioner, from_file, from_tags, nothing
from daclip.captions.write import Written, targets, write

__all__ = ["Captioner", "Written", "from_file", "from_tags", "nothing", "targets", "write"]
