import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5

from nnunetv2_genseg.config import GenSegFileError
from nnunetv2_genseg.files.atomic import remove_partial
from nnunetv2_genseg.trainers import GenSegMixin, GenSegTrainer, GenSegTrainerNoFeedback, GenSegTrainerShort
from nnunetv2_genseg.trainers.saving import host_trainer, save_with_trainer_name
from nnunetv2_genseg.trainers.short import ShortTraining, nnUNetTrainerDA5Short


class WithNetwork(nnUNetTrainer):
    """A user's trainer with another network; those below are other users'."""

    @staticmethod
    def build_network_architecture(*args, **kwargs):
        return torch.nn.Identity()


class WithClassMethod(nnUNetTrainer):
    @classmethod
    def build_network_architecture(cls, *args, **kwargs):
        return torch.nn.Identity()


class WithoutNetwork(nnUNetTrainer):
    pass


class OwnNetwork(GenSegTrainer):
    @staticmethod
    def build_network_architecture(*args, **kwargs):
        return torch.nn.Identity()


class OwnNetworkOnDA5(GenSegMixin, nnUNetTrainerDA5):
    @staticmethod
    def build_network_architecture(*args, **kwargs):
        return torch.nn.Identity()


class NetworkMixin:
    @staticmethod
    def build_network_architecture(*args, **kwargs):
        return torch.nn.Identity()


def derived(name, *bases):
    return type(name, bases, {"__module__": __name__})


@pytest.mark.parametrize(
    "kind, name",
    [
        (GenSegTrainer, "nnUNetTrainer"),
        (GenSegTrainerNoFeedback, "nnUNetTrainer"),
        (GenSegTrainerShort, "nnUNetTrainer"),
        (derived("Mine", GenSegTrainer), "nnUNetTrainer"),
        (derived("Mine", GenSegMixin, nnUNetTrainerDA5), "nnUNetTrainerDA5"),
        (derived("Mine", ShortTraining, GenSegMixin, nnUNetTrainerDA5), "nnUNetTrainerDA5"),
        (derived("Mine", GenSegMixin, nnUNetTrainerDA5Short), "nnUNetTrainerDA5"),
        (derived("Mine", GenSegMixin, WithNetwork), "WithNetwork"),
        (derived("Mine", GenSegMixin, WithClassMethod), "WithClassMethod"),
        (derived("Mine", GenSegMixin, derived("Child", WithNetwork)), "Child"),
        (derived("Mine", GenSegMixin, WithoutNetwork, WithNetwork), "WithNetwork"),
        (derived("Mine", ShortTraining, derived("Inner", GenSegMixin, WithNetwork)), "WithNetwork"),
        (OwnNetwork, "OwnNetwork"),
        (OwnNetworkOnDA5, "OwnNetworkOnDA5"),
        (derived("OwnShort", ShortTraining, OwnNetwork), "OwnShort"),
        (derived("Mixed", NetworkMixin, GenSegTrainer), "Mixed"),
        (derived("MixedHost", GenSegMixin, NetworkMixin, nnUNetTrainer), "MixedHost"),
    ],
)
def test_prediction_builds_the_network_that_was_trained(kind, name):
    assert host_trainer(kind, GenSegMixin) == name
    named = next(base for base in kind.__mro__ if base.__name__ == name)
    assert issubclass(named, nnUNetTrainer), "nnU-Net refuses others"
    built, trained = named.build_network_architecture, kind.build_network_architecture
    assert getattr(built, "__func__", built) is getattr(trained, "__func__", trained)


def host(**values):
    """nnU-Net's own way to write a checkpoint, of a small network after a step."""
    network = torch.nn.Linear(300, 300)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    logger = SimpleNamespace(get_checkpoint=lambda: {"losses": [0.5]})
    known = {"local_rank": 0, "disable_checkpointing": False, "is_ddp": False, "grad_scaler": None, "_best_ema": 0.7}
    known |= {"current_epoch": 3, "my_init_kwargs": {"configuration": "2d"}, "inference_allowed_mirroring_axes": (0, 1)}
    trainer = SimpleNamespace(**known, network=network, optimizer=optimizer, logger=logger, **values)
    return trainer, lambda filename: nnUNetTrainer.save_checkpoint(trainer, filename)


def test_the_checkpoint_is_nnunets_but_for_the_name(tmp_path):
    trainer, save = host()
    path = tmp_path / "checkpoint_latest.pth"
    save(str(tmp_path / "nnunets.pth"))
    save_with_trainer_name(save, path, "nnUNetTrainerDA5")
    expected, content = (torch.load(file, weights_only=False) for file in (tmp_path / "nnunets.pth", path))
    assert content["trainer_name"] == "nnUNetTrainerDA5"
    assert list(content) == list(expected)
    for key in set(expected) - {"trainer_name", "network_weights", "optimizer_state"}:
        assert content[key] == expected[key]
    for name, weights in trainer.network.state_dict().items():
        assert torch.equal(content["network_weights"][name], weights)
    for momentum in (content["optimizer_state"]["state"][i]["momentum_buffer"] for i in range(2)):
        assert torch.equal(momentum, torch.ones_like(momentum))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint_latest.pth", "nnunets.pth"]


def test_a_newer_checkpoint_replaces_the_older_one_while_that_is_mapped(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    save_with_trainer_name(host()[1], path, "First")
    mapped = torch.load(str(path), mmap=True, weights_only=False)
    before = mapped["network_weights"]["weight"].clone()
    save_with_trainer_name(host()[1], path, "Second")
    assert torch.equal(mapped["network_weights"]["weight"], before)
    assert torch.load(path, weights_only=False)["trainer_name"] == "Second"


def test_a_full_disk_leaves_the_older_checkpoint_intact(tmp_path):
    program = f"""
        import os, resource, signal
        from pathlib import Path
        import torch
        from nnunetv2_genseg.config import GenSegFileError
        from nnunetv2_genseg.trainers.saving import save_with_trainer_name
        path = Path({str(tmp_path)!r}) / "checkpoint_latest.pth"
        def save(filename):
            torch.save({{"trainer_name": "Mine", "weights": torch.ones(100_000)}}, filename)
        save_with_trainer_name(save, path, "First")
        before = path.read_bytes()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (0, 1000, 300_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                save_with_trainer_name(save, path, "Second")
            except GenSegFileError as error:
                assert "could not write" in str(error) and "intact" in str(error), error
            else:
                raise SystemExit("no error was raised")
            assert path.read_bytes() == before
            assert os.listdir(path.parent) == [path.name]
        os._exit(7)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr


def test_an_error_of_the_host_is_no_error_of_writing(tmp_path):
    def save(filename):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access") as raised:
        save_with_trainer_name(save, tmp_path / "checkpoint_latest.pth", "nnUNetTrainer")
    assert not isinstance(raised.value, GenSegFileError)


def test_what_a_killed_process_leaves_is_removed(tmp_path):
    class Killed(BaseException):
        pass

    def save(filename):
        with open(filename, "wb") as file:
            file.write(b"half")
        os.rename(filename, filename.replace(str(os.getpid()), "1"))  # as if nothing had been cleaned up
        raise Killed

    with pytest.raises(Killed):
        save_with_trainer_name(save, tmp_path / "checkpoint_latest.pth", "nnUNetTrainer")
    assert len(list(tmp_path.iterdir())) == 1
    remove_partial(tmp_path)
    assert not list(tmp_path.iterdir())


def test_saving_takes_little_more_memory_than_nnunets_own(tmp_path):
    """100 MB of weights: the anonymous memory of the process grows by far less while the name is changed."""
    program = f"""
        import threading, time
        import torch
        from pathlib import Path
        from nnunetv2_genseg.trainers.saving import save_with_trainer_name
        def anonymous():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
        weights = torch.ones(25_000_000)
        def save(filename):
            torch.save({{"trainer_name": "Mine", "weights": weights}}, filename)
        before, peak, done = anonymous(), [0], threading.Event()
        def watch():
            while not done.is_set():
                peak[0] = max(peak[0], anonymous())
                time.sleep(0.001)
        watcher = threading.Thread(target=watch)
        watcher.start()
        save_with_trainer_name(save, Path({str(tmp_path)!r}) / "checkpoint.pth", "Other")
        done.set()
        watcher.join()
        print((peak[0] - before) / 1e6)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50
