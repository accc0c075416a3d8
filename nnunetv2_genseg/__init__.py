"""GenSeg for nnU-Net v2: a mask-to-image generator that trains in one loop with the segmentation network."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2_genseg.pipelines.augmentation import PairAugmentation

__all__ = ["PairAugmentation", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is asked for: `import nnunetv2_genseg` takes no time."""
    if name == "PairAugmentation":
        return import_module("nnunetv2_genseg.pipelines.augmentation").PairAugmentation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
