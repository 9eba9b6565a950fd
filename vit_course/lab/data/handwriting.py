"""Real handwriting: the small digits that come with scikit-learn."""

from __future__ import annotations

import torch

from .image_set import ImageSet, check_split


def digits(split: str = "train") -> ImageSet:
    """Scikit-learn's handwritten digits, 8 × 8 grey, in a fixed split of 1,437 and 360, stratified by digit.

    Args:
        split: ``'train'`` or ``'test'``.

    Returns:
        An ImageSet of (b, 1, 8, 8) images, classes '0' to '9'.

    Raises:
        TypeError, ValueError: if ``split`` is something else.

    Source:
        "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI repository, as bundled in
        scikit-learn.
    """
    check_split(split)
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    parts = train_test_split(data.images, data.target, test_size=360, stratify=data.target, random_state=0)
    images, labels = parts[0::2] if split == "train" else parts[1::2]
    pixels = torch.from_numpy(images).float()[:, None] / 16  # scikit-learn stores ink as 0..16
    return ImageSet(pixels, torch.from_numpy(labels).long(), tuple(str(name) for name in data.target_names))
