"""Two processes that train together, over gloo on the CPU: nnU-Net's own `-num_gpus` asks for CUDA."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training import nnUNetTrainer as host_package  # noqa: N813
from torch import distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_genseg.bilevel.feedback import HeldOutBatch
from nnunetv2_genseg.generators import gan
from nnunetv2_genseg.trainers import GenSegTrainerShort
from nnunetv2_genseg.trainers.memory_check import try_largest_steps

from .conftest import make_trainer
from .processes import differences

PHANTOM_2D = ("Dataset901_Phantom2D", "2d")
PHANTOM_3D = ("Dataset902_Phantom3D", "3d_fullres")
PROCESSES = 2
STEPS = 3


def in_processes(work: Callable[..., None], folder: Path, *arguments: Any) -> list[dict[str, Any]]:
    """Runs `work(rank, folder, *arguments)` in processes of one group; what each saved in `folder`."""
    multiprocessing.start_processes(_member, (work, folder, *arguments), nprocs=PROCESSES, start_method="spawn")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def _member(rank: int, work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    # on the CPU there are no device numbers
    host_package.nnUNetTrainer.DDP = lambda network, device_ids: DistributedDataParallel(network)
    work(rank, folder, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def on_cpu(dataset: str, configuration: str, length: str, resume: bool = False) -> Any:
    trainer = make_trainer(GenSegTrainerShort, dataset, configuration, length, resume=resume)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None  # nnU-Net's choice in a group is CUDA
    return trainer


def everything_learned(trainer: Any) -> dict[str, Any]:
    """Segmentation network, generator with its optimisers and its moving average, policy and feedback."""
    loop = trainer.loop
    state = {
        "network": dict(trainer._plain_network().state_dict()),
        "generator": loop.sampler.sources["redraw"].generator.state_dict(),
        "policy": dict(loop.sampler.policy.state_dict()),
        "feedback": loop.feedback.state_dict(),
    }
    return copy.deepcopy(state)


def train_together(rank: int, folder: Path, dataset: str, configuration: str) -> None:
    trainer = on_cpu(dataset, configuration, "10,2,1,4,0")
    trainer.initialize()
    step, sample, generator = trainer.train_step, trainer.loop.sample, trainer.loop.sampler.sources["redraw"].generator
    start = [parameter.detach().clone() for parameter in trainer.loop.feedback.phi]

    def spoilt(*arguments: Any) -> Any:
        draw = generator.sample
        generator.sample = lambda condition, style: draw(condition, style) / 0
        try:
            return sample(*arguments)
        finally:
            generator.sample = draw

    def watched(batch: Any) -> Any:
        faulty = rank == 1 and trainer.current_epoch == 5 and trainer._iteration == 0  # in one process alone
        trainer.loop.sample = spoilt if faulty else sample
        return step(batch)

    begin = trainer.on_train_start

    def trying() -> None:
        begin()
        drawn = trainer.loop.rng.get_state()
        try_largest_steps(trainer)
        assert torch.equal(trainer.loop.rng.get_state(), drawn), "each process has its own"

    trainer.train_step, trainer.on_train_start = watched, trying
    trainer.run_training()
    assert any(not torch.equal(old, new) for old, new in zip(start, trainer.loop.feedback.phi, strict=True)), "by the feedback"
    rows = {int(row["epoch"]): sorted(row) for row in trainer.recorder.progress.rows}
    drawn = [torch.randint(1000, (4,), generator=rng).tolist() for rng in (trainer.loop.rng, trainer.loop.slot_rng)]
    torch.save(everything_learned(trainer) | {"rows": rows[6], "drawn": drawn}, folder / f"rank{rank}.pt")


@pytest.mark.parametrize(("data", "parameters"), [(PHANTOM_2D, "policy"), (PHANTOM_3D, "architecture")])
def test_all_processes_learn_the_same_and_draw_differently(nnunet, settings, data, parameters):
    settings({
        "mixing": {"share": 1.0, "sources": {"redraw": 1.0}},  # so that the fault is in the batch
        "generator": {"interval": 1},
        "feedback": {"interval": 1, "parameters": parameters},
    })  # fmt: skip
    first, second = in_processes(train_together, nnunet, *data)
    assert {"acceptance_rate", "loss_heldout", "hypergradient_norm", "l1"} <= set(first["rows"])
    for one, other in zip(first.pop("drawn"), second.pop("drawn"), strict=True):
        assert one != other
    assert not list(differences(first, second))
    log = next((nnunet / "results").rglob("training_log_*.txt")).read_text()
    assert "epoch 5, iteration 1: a synthetic image is not finite" in log, "of the other process"


class Descent(torch.optim.SGD):
    """Steps of one length along the whole gradient. Adam makes whole steps of the parts of it that are rounding errors."""

    def step(self, closure: None = None) -> None:
        parts = [weight.grad for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        length = torch.stack([part.norm() for part in parts]).norm()
        for part in parts:
            part /= length
        super().step()


def steps_on(trainer: Any, mine: slice) -> None:
    """Steps with pairs and feedback on fixed batches, style noise that is a function of the image and nothing else random."""
    trainer.initialize()
    trainer.current_epoch = 5
    trainer.network.train()
    trainer.optimizer.param_groups[0]["lr"] = 1e-3
    held_out = fixed_batch(trainer, 100, mine)
    parts = trainer._batches.parts(held_out)
    trainer._held_out.next_batch = lambda: HeldOutBatch(parts.network_input, parts.labels)
    source = trainer.loop.sampler.sources["redraw"]
    generator, feedback = source.generator, trainer.loop.feedback
    (length,) = generator.style_shape(parts.image.shape[2:])

    def style(image: torch.Tensor, rng: torch.Generator, factor: torch.Tensor | float = 1.0) -> torch.Tensor:
        flat = image.flatten(1)
        return factor * flat.repeat(1, -(-length // flat.shape[1]))[:, :length]

    source._style = style
    gan.augment = lambda condition, image, rng: (condition, image.clone())
    generator.network_optimizer = Descent(generator.learned, 0.05)
    generator.discriminator_optimizer = Descent(generator.judging, 0.05)
    feedback.optimizer = Descent(feedback.phi, 2e-3)
    for number in range(STEPS):
        trainer.train_step(fixed_batch(trainer, number, mine))
    assert not trainer.loop.check()


def fixed_batch(trainer: Any, seed: int, mine: slice) -> dict[str, Any]:
    patch_size = trainer.configuration_manager.patch_size
    noise = torch.Generator().manual_seed(seed)
    labels = torch.zeros(PROCESSES, *patch_size, dtype=torch.long)
    third = patch_size[0] // 3
    for i in range(PROCESSES):
        labels[(i, *(slice(2 + i, 2 + i + third),) * len(patch_size))] = 1
        labels[(i, *(slice(-third - i - 2, -2 - i),) * len(patch_size))] = 2
    image = 0.3 * torch.randn(PROCESSES, 1, *patch_size, generator=noise) + labels[:, None]
    return {"data": image[mine], "target": [level[mine] for level in trainer._batches.to_target(labels)]}


def fixed_steps(rank: int, folder: Path) -> None:
    trainer = on_cpu(*PHANTOM_3D, "10,50,1,4,0")
    steps_on(trainer, slice(rank, rank + 1))
    torch.save(everything_learned(trainer), folder / f"rank{rank}.pt")


def tensors_in(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: value for at, part in items for key, value in tensors_in(part, f"{name}.{at}").items()}


def parts_of(state: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """Names of the tensors of every part of the model."""
    parts: dict[str, list[str]] = {}
    for name, value in state.items():
        _, *part = name.split(".")[:3]
        own = ["alpha"] if "alpha" in name else []
        if value.is_floating_point():
            parts.setdefault(".".join(part + own), []).append(name)
    return parts


@pytest.mark.parametrize("parameters", ["architecture", "weights", "policy"])
def test_two_processes_learn_what_one_learns_from_the_whole_batch(nnunet, settings, parameters):
    settings({
        "mixing": {"share": 1.0, "sources": {"redraw": 1.0}},
        "deformation": {"displacement": 0.0, "rotation": 0.0, "scaling": 0.0},
        "intensity": {"shift": 0.0, "tone": 0.0},
        "redraw": {"mode": "tissue"},
        "generator": {"interval": 1},
        "feedback": {"interval": 1, "patches": PROCESSES, "parameters": parameters, "rotations": 1},
    })  # fmt: skip
    start = on_cpu(*PHANTOM_3D, "10,50,1,4,0")
    start.initialize()
    before = tensors_in(everything_learned(start))
    first, second = in_processes(fixed_steps, nnunet)
    alone = on_cpu(*PHANTOM_3D, "10,50,1,4,0")
    assert not alone.configuration_manager.batch_dice, "else Dice is not a mean over the patches"
    steps_on(alone, slice(None))
    assert not list(differences(first, second))
    expected, found = tensors_in(everything_learned(alone)), tensors_in(first)
    assert expected.keys() == found.keys()
    for part, names in parts_of(expected).items():
        off, way = (torch.cat([(other[name] - expected[name]).flatten() for name in names]).norm() for other in (found, before))
        # Rounding moves kinks of the networks, and the feedback's difference magnifies that. Found on one machine, in shares of
        # the way: 0.006, of `alpha` 0.015; without the average over processes at least 0.12, of `alpha` 0.42.
        assert off <= (0.2 if "alpha" in part else 0.05) * way, f"{part}: {off / way}"
    moved = {"architecture": "alpha", "weights": "decoder", "policy": "log_style"}[parameters]
    moved = [name for name in expected if moved in name and "optimizer" not in name]
    assert any((expected[name] - before[name]).abs().max() > 1e-4 for name in moved), "by the feedback, or in training"
