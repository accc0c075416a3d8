"""The loop of generator and segmentation network: schedule, generator steps, and feedback by hypergradients."""
