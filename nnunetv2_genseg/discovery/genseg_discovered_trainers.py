"""What nnU-Net's `nnUNet_extTrainer` points at: the installed package's trainers, and nothing else in this folder.

nnU-Net imports every module of the folder and forgets it again, so classes defined here would exist twice and could not
be pickled; these are imported from where they are installed.
"""

from nnunetv2_genseg.trainers import *  # noqa: F403
