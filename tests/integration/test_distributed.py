"""Two processes that train together, over gloo on the CPU: nnU-Net's own `-num_gpus` asks for CUDA."""

from __future__ import annotations

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

from nnunetv2_genseg.trainers import GenSegTrainerShort

from .conftest import make_trainer

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


def on_cpu(dataset: str, configuration: str, length: str) -> Any:
    trainer = make_trainer(GenSegTrainerShort, dataset, configuration, length)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None  # nnU-Net's choice in a group is CUDA
    return trainer


def everything_learned(trainer: Any) -> dict[str, Any]:
    """Segmenter, generator, discriminator, α and policy."""
    generator = trainer.coupling.generator
    return {
        "segmenter": {name: value.clone() for name, value in trainer._plain_network().state_dict().items()},
        "generator": {name: value.clone() for name, value in generator.network.state_dict().items()},
        "discriminator": {name: value.clone() for name, value in generator.discriminator.state_dict().items()},
        "alpha": {str(i): value.detach().clone() for i, value in enumerate(generator.architecture())},
        "policy": dict(trainer.coupling.pairs.policy.state_dict()),
    }


def train_together(rank: int, folder: Path, dataset: str, configuration: str) -> None:
    trainer = on_cpu(dataset, configuration, "10,2,1,4,0")
    step = trainer.train_step

    def watched(batch: Any) -> Any:
        if trainer.current_epoch == 5 and trainer._iteration == 0 and rank == 1:  # a fault in one process alone
            draw, generator = trainer.coupling.generator.draw, trainer.coupling.generator
            generator.draw = lambda condition, style: draw(condition, style) / 0
            try:
                return step(batch)
            finally:
                generator.draw = draw
        return step(batch)

    begin = trainer.on_train_start

    def rehearsed() -> None:
        begin()
        drawn = trainer.coupling.rng.get_state()
        trainer._rehearse()
        assert torch.equal(trainer.coupling.rng.get_state(), drawn), "each process has its own"

    trainer.train_step, trainer.on_train_start = watched, rehearsed
    trainer.run_training()
    rows = {int(row["epoch"]): sorted(row) for row in trainer.progress.rows}
    batches = {"rows": rows[6], "drawn": torch.randint(1000, (4,), generator=trainer.coupling.rng).tolist()}
    torch.save(everything_learned(trainer) | batches, folder / f"rank{rank}.pt")


@pytest.mark.parametrize(("data", "parameters"), [(PHANTOM_2D, "policy"), (PHANTOM_3D, "architecture")])
def test_all_processes_learn_the_same_and_draw_differently(nnunet, settings, data, parameters):
    settings({"feedback": {"interval": 1, "parameters": parameters}})
    first, second = in_processes(train_together, nnunet, *data)
    assert {"synthetic", "feedback", "hypergradient", "l1"} <= set(first["rows"])
    assert first.pop("drawn") != second.pop("drawn")
    for name in ("segmenter", "generator", "discriminator", "alpha", "policy"):
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), f"{name} {key}"
    moved = first["alpha"].values() if parameters == "architecture" else [first["policy"]["log_deformation"]]
    assert any((part != 0).any() for part in moved), "by the feedback"
    log = next((nnunet / "results").rglob("training_log_*.txt")).read_text()
    assert "epoch 5, iteration 0: a synthetic image of another process holds NaN or infinity" in log


class Descent(torch.optim.SGD):
    """Steps of one length along the whole gradient. Adam makes whole steps of the parts of it that are rounding errors."""

    def step(self, closure: None = None) -> None:
        parts = [weight.grad for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        length = torch.stack([part.norm() for part in parts]).norm()
        for part in parts:
            part /= length
        super().step()


def steps_on(trainer: Any, mine: slice) -> None:
    """Steps with mixing and feedback on fixed batches, style noise that is a function of the image and nothing else random."""
    trainer.initialize()
    trainer.current_epoch, trainer._turn = 5, 0
    trainer.network.train()
    trainer.optimizer.param_groups[0]["lr"] = 1e-3
    held = fixed_batch(trainer, 100, mine)
    trainer._feedback_batch = lambda: (held["data"], trainer._codec_on_device(held["target"]))
    width = trainer.genseg.generator.style_channels
    trainer.coupling.pairs.style = lambda generator, image, rng: image.flatten(1)[:, :width]
    generator = trainer.coupling.generator
    generator.network_optimizer = Descent(generator.learned, 0.05)
    generator.discriminator_optimizer = Descent(generator.discriminator.parameters(), 0.05)
    trainer.coupling.phi_optimizer = Descent(trainer.coupling.phi, 2e-3)
    for number in range(STEPS):
        trainer.train_step(fixed_batch(trainer, number, mine))


def fixed_batch(trainer: Any, seed: int, mine: slice) -> dict[str, Any]:
    patch_size = trainer.configuration_manager.patch_size
    noise = torch.Generator().manual_seed(seed)
    labels = torch.zeros(PROCESSES, *patch_size, dtype=torch.long)
    third = patch_size[0] // 3
    for i in range(PROCESSES):
        labels[(i, *(slice(2 + i, 2 + i + third),) * len(patch_size))] = 1
        labels[(i, *(slice(-third - i - 2, -2 - i),) * len(patch_size))] = 2
    image = 0.3 * torch.randn(PROCESSES, 1, *patch_size, generator=noise) + labels[:, None]
    return {"data": image[mine], "target": [level[mine] for level in trainer._to_target(labels)]}


def fixed_steps(rank: int, folder: Path) -> None:
    trainer = on_cpu(*PHANTOM_3D, "10,50,1,4,0")
    steps_on(trainer, slice(rank, rank + 1))
    torch.save(everything_learned(trainer), folder / f"rank{rank}.pt")


@pytest.mark.parametrize("parameters", ["architecture", "weights", "policy"])
def test_two_processes_learn_what_one_learns_from_the_whole_batch(nnunet, settings, parameters):
    settings({
        "mixing": {"sources": "batch"},  # the fixed steps have no further batch
        "masks": {"elastic": 0.0, "rotation": 0.0, "scaling": 0.0},
        "conditioning": {"mode": "tissue", "intensity_shift": 0.0, "tone": 0.0},
        "feedback": {"interval": 1, "patches": PROCESSES, "parameters": parameters, "lookahead": True},
    })  # fmt: skip
    together = in_processes(fixed_steps, nnunet)
    alone = on_cpu(*PHANTOM_3D, "10,50,1,4,0")
    assert not alone.configuration_manager.batch_dice, "else Dice is not a mean over the patches"
    steps_on(alone, slice(None))
    expected = everything_learned(alone)
    assert any((part.abs() > 1e-4).any() for part in expected["alpha"].values()), "by the feedback, or learned like other weights"
    for name in ("segmenter", "generator", "discriminator", "alpha", "policy"):
        for key, value in expected[name].items():
            found = together[0][name][key]
            assert torch.allclose(found, value, rtol=1e-3, atol=1e-5), f"{name} {key}: {(found - value).abs().max()}"
            assert torch.equal(found, together[1][name][key])
