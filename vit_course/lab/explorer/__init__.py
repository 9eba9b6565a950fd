"""See attention: move over a patch of a picture and see at once what it attends to."""

from .widget import AttentionExplorer

__all__ = ["AttentionExplorer"]
