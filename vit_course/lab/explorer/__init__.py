"""See attention: move over a patch of a picture and see at once where it looks."""

from .widget import AttentionExplorer

__all__ = ["AttentionExplorer"]
