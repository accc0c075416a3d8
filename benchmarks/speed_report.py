"""The section on time and memory out of `speed.py`'s results."""

from __future__ import annotations

from typing import Any

HEAD = """
## Time and memory

```bash
python benchmarks/speed.py --raw PATH/TO/nnUNet_raw --work FOLDER
```

Stock nnU-Net and GenSeg take turns in one process, each on its own batches. Times are relative to stock: the mean over a training
at the default, its stages weighed by the schedule, feedback included. **Iteration** is loading, augmentation and step, as a
training without workers has them; **step** is the training step alone. Memory is the peak of a process that trains for a few
iterations of every stage. Machine: {machine}. Versions: {versions}. Commit: {commit}.

"""
COLUMNS = ("dataset", "plan", "patch", "batch", "stock, ms", "iteration", "step", "by stage", "feedback step", "memory", "syncs")
TAIL = """
**Feedback step**: what one adds, in stock iterations. **Syncs**: host synchronisations of an iteration with pairs, of one with a
feedback step too, and in brackets of stock. [Speed and memory](explanation/speed.md): where the time goes, and how it grows.
"""


def speed(record: dict[str, Any]) -> str:
    """Markdown: a line a plan."""
    versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
    text = HEAD.format(machine=record["machine"], versions=versions, commit=record["commit"])
    text += "| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|\n"
    for plan in record["plans"]:
        cells = (
            plan["dataset"],
            plan["configuration"],
            " × ".join(map(str, plan["patch_size"])),
            plan["batch_size"],
            f"{1000 * plan['stock_seconds']['median']:.0f}",
            f"**{plan['iteration_ratio']:.2f}**",
            f"{plan['step_ratio']:.2f}",
            ", ".join(f"{stage} {ratio:.2f}" for stage, ratio in plan["stage_ratios"].items()),
            f"{plan['feedback_iterations']:.1f}",
            f"**{plan['memory_ratio']:.2f}**",
            f"{plan['host_syncs']}, {plan['feedback_host_syncs']} ({plan['stock_host_syncs']})",
        )
        text += "| " + " | ".join(map(str, cells)) + " |\n"
    return text + TAIL
