"""A TorchIO transform: with a probability, image and label map of a subject become a synthetic pair."""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.pipelines.augmentation import PairAugmentation

try:
    from torchio import Subject
    from torchio.transforms.augmentation.random_transform import RandomTransform
except ImportError as error:
    raise ImportError("this transform needs TorchIO; run: pip install nnunetv2-genseg[torchio]") from error


class RandomSyntheticPair(RandomTransform):
    """Replaces an image and its label map, (C, W, H, D), by a synthetic pair; a photograph or slice has D = 1.

    Affine, names and earlier history stay as they are. A pair cannot be undone, so it is not recorded in the history. The image
    is normalised before (see `PairAugmentation.normalised`) and has a size that the generator takes.

    Args:
        pairs: makes the pair.
        image_name: of the subject's image.
        label_name: of its label map.
        **kwargs: TorchIO's, such as the probability `p`.
    """

    def __init__(self, pairs: PairAugmentation, image_name: str = "image", label_name: str = "label", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pairs = pairs
        self.image_name = image_name
        self.label_name = label_name

    def apply_transform(self, subject: Subject) -> Subject:
        """The subject with a pair in place of image and label map."""
        image, labels = (subject[name].data for name in (self.image_name, self.label_name))
        flat = self.pairs.description.plan.dims == 2
        if flat and image.shape[-1] != 1:
            raise GenSegError(f"the generator draws slices, found an image of shape {tuple(image.shape)}; give (C, W, H, 1)")
        parts = (image[..., 0], labels[..., 0]) if flat else (image, labels)
        drawn, masks = self.pairs.of_xyz(*parts, seed=int(torch.randint(2**31, (1,))))
        subject[self.image_name].set_data(drawn[..., None] if flat else drawn)
        subject[self.label_name].set_data((masks[..., None] if flat else masks).to(labels.dtype))
        return subject
