"""A MONAI transform: with a probability, image and label map of a dictionary become a synthetic pair."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from nnunetv2_genseg.pipelines.augmentation import PairAugmentation

try:
    from monai.transforms import MapTransform, RandomizableTransform
    from monai.utils import convert_to_dst_type, convert_to_tensor
except ImportError as error:
    raise ImportError("this transform needs MONAI; run: pip install nnunetv2-genseg[monai]") from error


class RandSyntheticPaird(RandomizableTransform, MapTransform):
    """Replaces an image, (C, *spatial), and its label map, (1, *spatial), by a synthetic pair.

    Types, devices and MONAI's metadata stay as they are. Axes are indexed (x, y[, z]), as MONAI's readers load them. The image is
    normalised before (see `PairAugmentation.normalised`) and has a size that the generator takes.

    Args:
        pairs: makes the pair.
        image_key: of the image.
        label_key: of the label map.
        prob: of a synthetic pair.
    """

    def __init__(self, pairs: PairAugmentation, image_key: str = "image", label_key: str = "label", prob: float = 0.5) -> None:
        MapTransform.__init__(self, (image_key, label_key))
        RandomizableTransform.__init__(self, prob)
        self.pairs = pairs
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draws whether the pair is replaced, and the seed of the new one."""
        super().randomize(data)
        self._seed = int(self.R.randint(2**31))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The dictionary with a pair in place of image and label map."""
        found = dict(data)
        self.randomize()
        if not self._do_transform:
            return found
        # with metadata all takes twice the time
        image, labels = (convert_to_tensor(found[key], track_meta=False) for key in self.keys)
        drawn = self.pairs.of_xyz(image, labels, self._seed)
        for key, new in zip(self.keys, drawn):
            found[key] = convert_to_dst_type(new, dst=found[key])[0]
        return found
