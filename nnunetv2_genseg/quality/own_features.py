"""Features of a user's own, by which distributions of images are compared in place of those of the segmentation network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.quality.features import in_batches


def feature_function(name: str) -> Callable[[Tensor, int], Tensor]:
    """The function that `module:function` names; the module is looked for in the current folder, too.

    Args:
        name: of a function from images, (N, C, *spatial), to features, (N, D).

    Returns:
        A function from (N, C, *spatial) images, and how many the named one is given at once, to (N, D) float32 on the CPU.

    Raises:
        GenSegError: there is no such function.
    """
    module, colon, function = name.partition(":")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise GenSegError(f"--features needs MODULE:FUNCTION, as in my_features:resnet, found {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        given = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise GenSegError(f"--features {name} cannot be found ({error}); correct it, or start where the module is") from None
    if not callable(given):
        raise GenSegError(f"--features {name} is {type(given).__name__}, not a function; name one")

    def computed(images: Tensor) -> Tensor:
        found = torch.as_tensor(given(images)).detach().float().cpu()
        if found.ndim != 2 or len(found) != len(images) or not bool(found.isfinite().all()):
            raise GenSegError(
                f"--features {name} gave a result of shape {tuple(found.shape)} for {len(images)} images; return finite "
                f"numbers of shape ({len(images)}, D)"
            )
        return found

    return lambda images, at_once: in_batches(computed, images, at_once)
