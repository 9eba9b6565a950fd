"""How two models are compared: the lessons' own harness, under the name that the tests know."""

from vit_course.lab.parity import DIFFERENT, SAME, disagreement, randomise, relative_error

__all__ = ["DIFFERENT", "SAME", "disagreement", "randomise", "relative_error"]
