"""The installed package's trainers, in the folder that `nnUNet_extTrainer` names; it must hold nothing else.

nnU-Net imports every module of the folder and removes it from `sys.modules` afterwards. Classes defined here would
therefore exist twice, and could not be pickled. So they are imported from where they are installed.
"""

from nnunetv2_genseg.trainers import *  # noqa: F403
