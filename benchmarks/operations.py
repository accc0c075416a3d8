"""What iterations do, counted instead of timed, so that it is the same on every machine and in every hour."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Counter(TorchDispatchMode):
    """Counts within `counting`.

    Torch's own `FlopCounterMode` counts the same operations, but its hooks do not allow `torch.autograd.grad` by an input of a
    module, as the gradient penalty has it, and with torch 2.1 it counts backward convolutions wrongly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        """Floating-point operations of convolutions and matrix products, forward, backward and differentiated twice. None is
        counted of norms, activations, interpolation, `grid_sample` and optimisers, of which `bytes` tells."""
        self.bytes = 0
        """Read and written by operations, views left out."""
        self.waits = 0
        """Reads of a number from the device. What optimisers read is left out: their step counters, which are in main memory."""
        self.backward = 0
        """Backward passes."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.waits += not _within_an_optimiser()
        self.flops += _flops(name, args, result)
        returned = [value.alias_info for value in function._schema.returns]
        views = any(alias is not None and not alias.is_write for alias in returned)
        if not views and "empty" not in name:
            tensors = [leaf for leaf in tree_flatten((args, kwargs or {}, result))[0] if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def _within_an_optimiser() -> bool:
    frame = inspect.currentframe()
    while frame is not None and "torch/optim/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _flops(name: str, args: Any, result: Any) -> int:
    if name == "convolution":
        return _of_convolution(args[0], args[1], result, transposed=args[6])
    if name == "convolution_backward":
        outward, image, kernel = args[:3]
        return sum(args[-1][:2]) * _of_convolution(image, kernel, outward, transposed=args[7])
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        return 2 * int(result.numel()) * int(args[-1].shape[-2])
    return 0


def _of_convolution(image: Any, kernel: Any, result: Any, transposed: bool) -> int:
    positions = (image if transposed else result).shape[2:]
    return 2 * int(image.shape[0]) * math.prod(positions) * int(kernel.numel())


@contextmanager
def counting(counter: Counter) -> Iterator[None]:
    """Counts what happens in the block, backward passes included."""

    def counted(function: Any) -> Any:
        def called(*args: Any, **options: Any) -> Any:
            counter.backward += 1
            return function(*args, **options)

        return called

    passes = {name: counted(getattr(torch.autograd, name)) for name in ("backward", "grad")}
    with mock.patch.multiple(torch.autograd, **passes), counter:
        yield


def count_steps(trainer: Any, epoch: int, count: int, counter: Counter) -> list[int]:
    """Counts the training steps of the first iterations of an epoch, without loading and augmentation.

    Args:
        trainer: begun.
        epoch: which one.
        count: of iterations.
        counter: goes on.

    Returns:
        The waits of every iteration.
    """
    trainer.current_epoch = epoch
    trainer.on_train_epoch_start()
    waits = []
    for _ in range(count):
        batch, before = next(trainer.dataloader_train), counter.waits
        with counting(counter):
            trainer.train_step(batch)
        waits.append(counter.waits - before)
    return waits
