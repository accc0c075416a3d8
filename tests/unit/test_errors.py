"""What others raise where a disk is full becomes a message; every other error stays (kind: a user's error or ours)."""

import errno

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_genseg.config import GenSegError, GenSegFileError
from nnunetv2_genseg.config.errors import full_disks_told
from tests.full_disk import room

NOISE = np.random.default_rng(0).integers(0, 3, (1, 512, 512)).astype(np.uint8)
SPACING = {"sitk_stuff": {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}}
WRITERS = {
    "nnU-Net's plans": lambda path: save_json(list(range(1000)), str(path)),
    "a segmentation for the next stage": lambda path: nnUNetDatasetBlosc2.save_seg(NOISE, str(path)),
    "a volume": lambda path: SimpleITKIO().write_seg(NOISE, f"{path}.nrrd", SPACING),  # of NIfTI ITK says nothing
    "a picture": lambda path: NaturalImage2DIO().write_seg(NOISE, f"{path}.png", {}),
    "weights": lambda path: torch.save(torch.zeros(1000), str(path)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_a_full_disk_is_told_whoever_writes(write, tmp_path):
    with full_disks_told():
        write(tmp_path / "whole")
    with (
        pytest.raises(GenSegFileError, match=r"(?s)most likely because a disk is full: .*Free space"),
        full_disks_told(),
        room(50),
    ):
        write(tmp_path / "full")


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "none"), RuntimeError("shapes"), GenSegError("a setting")])
def test_another_error_stays(error):
    with pytest.raises(type(error)) as raised, full_disks_told():
        raise error
    assert raised.value is error
