import os
import pickle
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
import torch

from nnunetv2_genseg import checkpoint
from nnunetv2_genseg.config import GenSegError, GenSegFileError
from nnunetv2_genseg.files.atomic import replacing

IDENTITY = {"plans": "nnUNetPlans", "classes": 3, "config": {"seed": 0}}


def example_state():
    return {
        "generator": {"weight": torch.arange(5000.0), "step": 3},
        "rng": torch.Generator().manual_seed(3).get_state(),
        "rows": [{"epoch": 1.0, "share": 0.5}],
        "nothing": None,
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    checkpoint.save_sibling(example_state(), IDENTITY, path, 50)
    return path


def load(path, identity=None, epoch=50):
    return checkpoint.load_sibling(IDENTITY if identity is None else identity, path, epoch)


def test_sibling_lies_beside_the_checkpoint_and_names_its_epoch(tmp_path):
    assert checkpoint.sibling(tmp_path / "checkpoint_best.pth", 7) == tmp_path / "checkpoint_best.genseg-0007.pt"


def test_state_comes_back_as_it_was(saved):
    state, expected = load(saved), example_state()
    assert torch.equal(state["generator"]["weight"], expected["generator"]["weight"])
    assert torch.equal(state["rng"], expected["rng"])
    assert state["generator"]["step"] == 3
    assert state["rows"] == expected["rows"]
    assert state["nothing"] is None
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint_latest.genseg-0050.pt"]


def test_saving_replaces_the_older_file(saved):
    checkpoint.save_sibling({"new": True}, IDENTITY, saved, 50)
    assert load(saved) == {"new": True}


def test_a_full_disk_leaves_the_older_file_intact(saved):
    path = checkpoint.sibling(saved, 50)
    before = path.read_bytes()
    program = f"""
        import os, resource, signal
        from pathlib import Path
        import torch
        from nnunetv2_genseg.checkpoint import save_atomically
        from nnunetv2_genseg.config import GenSegFileError
        path = Path({str(path)!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (0, 1000, 30000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                save_atomically({{"new": torch.zeros(100000)}}, path)
            except GenSegFileError as error:
                assert "intact" in str(error), error
                assert error.__cause__ is not None
                assert os.listdir(path.parent) == [path.name], limit
            else:
                raise SystemExit("no error was raised")
        os._exit(7)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_an_error_with_the_path(tmp_path):
    with pytest.raises(GenSegFileError, match=r"could not write .*gone"):
        checkpoint.save_atomically({}, tmp_path / "gone" / "file.pt")


def test_what_cannot_be_saved_leaves_no_partial_file(tmp_path):
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint.save_atomically({"function": lambda: None}, tmp_path / "file.pt")
    assert list(tmp_path.iterdir()) == []


class Fails:
    def __reduce__(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_an_error_of_the_content_is_no_error_of_writing(tmp_path):
    with pytest.raises(RuntimeError, match="illegal memory access") as raised:
        checkpoint.save_atomically({"fails": Fails()}, tmp_path / "file.pt")
    assert not isinstance(raised.value, OSError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", [SystemExit(143), KeyboardInterrupt()])
@pytest.mark.parametrize("writes", [0, 1, 3])
def test_an_interruption_of_writing_is_no_error_of_writing(saved, interruption, writes):
    """Torch's writer takes what its file raises, as a handler of SIGTERM does, for a fault of the file."""
    path = checkpoint.sibling(saved, 50)
    before = path.read_bytes()

    class Interrupted:
        def __init__(self, file):
            self.file, self.left = file, writes

        def write(self, content):
            self.left -= 1
            if self.left < 0:
                raise interruption
            return self.file.write(content)

        def flush(self):
            self.file.flush()

    with pytest.raises(type(interruption)), replacing(path) as file:
        torch.save({"weights": torch.zeros(1000)}, Interrupted(file))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_missing_sibling_is_refused(saved):
    with pytest.raises(GenSegError, match=r"of epoch 51.*missing; restore that file"):
        load(saved, epoch=51)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_truncated_sibling_is_refused(saved, fraction):
    path = checkpoint.sibling(saved, 50)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(GenSegError, match="is corrupt"):
        load(saved)


def test_random_bytes_are_refused(saved):
    checkpoint.sibling(saved, 50).write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(GenSegError, match="is corrupt"):
        load(saved)


def stored_at(content, needle):
    found = content.find(needle)
    assert found > 0
    return found


def test_flipped_bit_in_a_tensor_is_refused(saved):
    path = checkpoint.sibling(saved, 50)
    content = bytearray(path.read_bytes())
    content[stored_at(content, torch.arange(5000.0).numpy().tobytes()[4000:4100])] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(GenSegError, match="is corrupt"):
        load(saved)


def test_flipped_bits_anywhere_never_give_another_state_or_error(saved):
    """Over the file's structure (names, pickled dictionaries, directory); a padding byte may stay unnoticed."""
    path = checkpoint.sibling(saved, 50)
    content = path.read_bytes()
    tensor = torch.arange(5000.0).numpy().tobytes()
    first = stored_at(content, tensor)
    structure = [*range(first), *range(first + len(tensor), len(content))]
    expected = example_state()
    refused = 0
    for position in structure[::17]:
        flipped = bytearray(content)
        flipped[position] ^= 0x04
        path.write_bytes(flipped)
        try:
            state = load(saved)
        except GenSegError:
            refused += 1
            continue
        assert state.keys() == expected.keys(), position
        assert torch.equal(state["generator"]["weight"], expected["generator"]["weight"]), position
        assert torch.equal(state["rng"], expected["rng"]), position
        assert state["generator"]["step"] == 3, position
        assert state["rows"] == expected["rows"], position
    assert refused > 10


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_an_entry_that_claims_another_compression_is_refused(saved, method):
    """Each method's decompressor has an error of its own."""
    path = checkpoint.sibling(saved, 50)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, entries = archive.start_dir, archive.infolist()
    for _ in entries:
        assert content[start : start + 4] == b"PK\1\2"
        claimed = bytearray(content)
        claimed[start + 10 : start + 12] = method.to_bytes(2, "little")
        path.write_bytes(claimed)
        with pytest.raises(GenSegError, match="is corrupt"):
            load(saved)
        start += 46 + sum(int.from_bytes(content[start + at : start + at + 2], "little") for at in (28, 30, 32))
    assert len(entries) > 3


def test_state_of_another_training_is_refused_with_the_difference(saved):
    with pytest.raises(GenSegError, match="another training: classes is 3 there, 4 here"):
        load(saved, {**IDENTITY, "classes": 4})
    with pytest.raises(GenSegError, match="another training: fold is None there, 1 here"):
        load(saved, {**IDENTITY, "fold": 1})


def test_state_of_another_epoch_under_this_name_is_refused(saved):
    checkpoint.sibling(saved, 50).rename(checkpoint.sibling(saved, 60))
    with pytest.raises(GenSegError, match="epoch is 50 there, 60 here"):
        load(saved, epoch=60)


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"format": 99, "epoch": 50, "identity": IDENTITY, "state": {}}, f"format 99, this version reads {checkpoint.FORMAT}"),
        ({"format": 4, "epoch": 50, "identity": IDENTITY, "state": {}}, r"format 4, .*with the version .* that wrote it"),
        ({"format": checkpoint.FORMAT, "epoch": 50, "identity": IDENTITY}, "corrupt"),
        ({"format": checkpoint.FORMAT, "epoch": 50, "identity": IDENTITY, "state": [1]}, "corrupt"),
        ({"format": checkpoint.FORMAT, "epoch": 50, "identity": [1], "state": {}}, "corrupt"),
        ({"format": checkpoint.FORMAT, "epoch": "50", "identity": IDENTITY, "state": {}}, "epoch is '50' there, 50 here"),
        ([1], "corrupt"),
        ([1, 2], "corrupt"),
        (3, "corrupt"),
    ],
)
def test_wrong_content_is_refused(saved, content, reason):
    torch.save(content, checkpoint.sibling(saved, 50))
    with pytest.raises(GenSegError, match=reason):
        load(saved)


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_the_file_is_not_executed(saved, tmp_path, write):
    proof = tmp_path / "executed"
    state = {"format": checkpoint.FORMAT, "epoch": 50, "identity": IDENTITY, "state": Malicious(f"touch {proof}")}
    write(state, checkpoint.sibling(saved, 50))
    with pytest.raises(GenSegError, match="corrupt"):
        load(saved)
    assert not proof.exists()


def test_siblings_are_removed_but_for_the_one_kept(tmp_path):
    latest, best = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_best.pth"
    for path in (latest, best):
        for epoch in (10, 20):
            checkpoint.save_sibling({}, {}, path, epoch)
    latest.write_bytes(b"nnU-Net's")
    checkpoint.remove_siblings(latest, keep=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_best.genseg-0010.pt",
        "checkpoint_best.genseg-0020.pt",
        "checkpoint_latest.genseg-0020.pt",
        "checkpoint_latest.pth",
    ]
    checkpoint.remove_siblings(best)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_latest.genseg-0020.pt", "checkpoint_latest.pth"]


def test_lists_of_cases_that_differ_are_told_by_their_names(saved):
    checkpoint.save_sibling({}, {"training cases": ["a", "b", "c"]}, saved, 50)
    for here, told in (
        (["a", "d"], "b, c only there, d only here"),
        (["a", "b"], "c only there"),
        (["c", "b", "a"], "in their order"),
    ):
        with pytest.raises(
            GenSegError, match=f"another training: training cases differ, {told};".replace(", in their", " in their")
        ):
            checkpoint.load_sibling({"training cases": here}, saved, 50)


OWN = {"weights": torch.zeros(2, 3), "list": [1.0, "a"], "none": None, "empty": {}, "deep": {"count": 3}, "flag": True}


@pytest.mark.parametrize(
    "change, place",
    [
        ({}, None),
        ({"none": torch.ones(1), "empty": {"any": 1}}, None),
        ({"list": [7, "b"], "deep": {"count": 4.0}}, None),
        ({"weights": None}, None),
        ({"weights": torch.zeros(3)}, ".weights"),
        ({"weights": torch.zeros(2, 3, dtype=torch.long)}, ".weights"),
        ({"weights": [0.0]}, ".weights"),
        ({"list": [1.0]}, ".list"),
        ({"list": [1.0, 2]}, ".list.1"),
        ({"list": {"0": 1.0, "1": "a"}}, ".list"),
        ({"empty": [1]}, ".empty"),
        ({"deep": {"number": 3}}, ".deep.count"),
        ({"deep": 3}, ".deep"),
        ({"flag": "yes"}, ".flag"),
    ],
)
def test_the_place_where_a_state_has_another_form_is_found(change, place):
    assert checkpoint.first_difference(OWN, OWN | change) == place


def test_an_optimiser_of_another_version_of_torch_fits():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([weight], 0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    older = optimizer.state_dict()
    del older["param_groups"][0]["foreach"]
    older["param_groups"][0] |= {"lr": 0.2, "of_the_future": True}
    assert checkpoint.first_difference(optimizer.state_dict(), older) is None
    optimizer.load_state_dict(older)
    optimizer.step()
    assert weight.detach() == pytest.approx(torch.full((2,), -0.3), abs=1e-3)
    older["param_groups"][0].pop("params")
    assert checkpoint.first_difference(optimizer.state_dict(), older) == ".param_groups.0.params"


def test_a_state_that_does_not_fit_is_a_message_with_the_path(tmp_path):
    message = r"generator state .*latest\.pth does not fit \(KeyError: 'x'\); restore that file"
    with pytest.raises(GenSegError, match=message), checkpoint.explained(tmp_path / "latest.pth"):
        raise KeyError("x")
    with pytest.raises(ZeroDivisionError), checkpoint.explained(tmp_path):
        raise ZeroDivisionError
