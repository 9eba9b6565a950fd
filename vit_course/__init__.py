"""Vision Transformers, built lesson by lesson.

Each module beside this file is made from the lesson of the same name in ``notebooks/``, those in ``atlas``
from the lessons in ``notebooks/atlas``. ``vit_course.lab`` is the hand-written bench around the lessons:
image sets, exercise checks, pictures, published weights.
"""

from importlib.metadata import version

__version__ = version("vit_course")
