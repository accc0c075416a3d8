"""From a real patch to a synthetic pair: masks, deformation, intensities, and the generator's part in it."""
