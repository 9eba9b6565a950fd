"""A training on a folder of photographs, of any size, in a folder of its own that it can be resumed from.

    settings = Pretraining(Path("photographs"), Path("run"), objective="dino", backbone="ViT-S/16")
    history = pretrain(settings)

The command `vit-course pretrain` is the same. Photographs are read as they are needed, with the augmentation
that was made for photographs, and the backbone is measured by its nearest neighbours while it trains, where
sub-folders are classes.
"""

from .folder import RunFolder, load_model
from .form import form, menu
from .labelled import LabelledPictures
from .objectives import OBJECTIVES
from .run import pretrain
from .settings import Pretraining

__all__ = [
    "OBJECTIVES",
    "LabelledPictures",
    "Pretraining",
    "RunFolder",
    "form",
    "load_model",
    "menu",
    "pretrain",
]
