"""Which channels a generator's condition has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConditionLayout:
    """Which channels a condition has.

    A scene is a (B, *spatial) int64 map of `scene_classes` classes: 0 is unlabelled background that has no tissue
    class (mode `mask`), then the foreground classes, then the tissue classes.
    """

    foreground: int
    """Number of foreground classes."""
    tissues: int
    """Number of tissue classes; 0 for conditions that hold the mask alone."""
    image_channels: int
    """Channels of the image."""
    movable_axes: tuple[bool, ...] | None = None
    """The plan's: False for an axis with thick slices, along which intensities are not blurred; None: there is no such axis."""

    @property
    def scene_classes(self) -> int:
        """Background, foreground and tissue classes."""
        return 1 + self.foreground + self.tissues

    @property
    def channels(self) -> int:
        """Channels of a condition: one a class but the background, and with tissues the classes' intensities."""
        return self.scene_classes - 1 + (self.image_channels if self.tissues else 0)
