"""GenSeg for nnU-Net v2: a mask-to-image generator that trains in one loop with the segmentation network."""

__version__ = "0.1.0"
