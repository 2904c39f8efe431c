"""The web page of `daclip ui`: photos in, what is wrong with them, before and after, results to take home."""

from daclip.ui.page import Page

__all__ = ["Page"]
