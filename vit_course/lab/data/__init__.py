"""Image sets for the lessons, all in the one form of `ImageSet`, with the same splits and seeds everywhere.

| set | pictures | needs |
|---|---|---|
| `digits()` | real handwriting, 1 × 8 × 8, ten classes | nothing |
| `photo(name)`, `photos()` | real photographs, whole and in crops; `PHOTO_CREDITS` says whose | nothing |
| `save_photos(folder)` | such crops as JPEG files in class folders | nothing |
| `shapes(level)` | generated scenes with label, exact mask and box, at three levels | nothing |
| `reach()`, `reach_dense()` | coloured cells: name the colour far from the mark | nothing |
| `image_folder(path)` | a learner's own pictures in memory, one sub-folder per class or none | the pictures |
| `ImageFolderStream(path)` | any number of photographs, read as needed; `PhotoCrops` | the photographs |
| `cifar10()`, `published(name)` | sets that torchvision can fetch | a network, once |
"""

from .folder import image_folder
from .handwriting import digits
from .image_set import MEAN, STD, ImageSet, normalise
from .photo_crops import IMAGENET_MEAN, IMAGENET_STD, PhotoCrops, PhotoView
from .photographs import PHOTO_CREDITS, Credit, photo, photos, save_photos
from .published import cifar10, published
from .reach import reach, reach_dense
from .scenes import LEVELS, boxes_around, shapes
from .stream import ImageFolderStream, SeededSampler

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LEVELS",
    "MEAN",
    "PHOTO_CREDITS",
    "STD",
    "Credit",
    "ImageFolderStream",
    "ImageSet",
    "PhotoCrops",
    "PhotoView",
    "SeededSampler",
    "boxes_around",
    "cifar10",
    "digits",
    "image_folder",
    "normalise",
    "photo",
    "photos",
    "published",
    "reach",
    "reach_dense",
    "save_photos",
    "shapes",
]
