"""Figures of the lessons, and the one way to show a figure: with a text alternative.

What several lessons draw stands in `shared` and is named here. The longer figures of one lesson stand in a
module that is named like the lesson's own: `pictures.vit` holds those of lesson 03.
"""

from . import (
    attention,
    cait,
    capstone,
    deeper,
    dino,
    distillation,
    es_vit,
    evaluation,
    for_real,
    max_vit,
    mpp,
    patching,
    start,
    training,
    vit,
    xcit,
)
from .shared import (
    COLOURS,
    DASHES,
    WIDTH,
    as_html,
    attention_maps,
    curves,
    draw_image,
    gallery,
    heatmap,
    image_element,
    patch_lines,
    show,
)

__all__ = [
    "COLOURS",
    "DASHES",
    "WIDTH",
    "as_html",
    "attention",
    "attention_maps",
    "cait",
    "capstone",
    "curves",
    "deeper",
    "dino",
    "distillation",
    "draw_image",
    "evaluation",
    "es_vit",
    "for_real",
    "gallery",
    "heatmap",
    "image_element",
    "max_vit",
    "mpp",
    "patch_lines",
    "patching",
    "show",
    "start",
    "training",
    "vit",
    "xcit",
]
