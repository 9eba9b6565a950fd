"""The bench around the lessons: image sets, exercise checks, pictures and published weights."""

from .checks import check

__all__ = ["check"]
