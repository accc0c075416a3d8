"""The section on written pairs out of `pairs.py`'s results."""

from __future__ import annotations

from typing import Any

HEAD = """
## Writing, judging and showing pairs

```bash
python benchmarks/pairs.py --work FOLDER DATASET CONFIGURATION FOLD
```

One CPU thread, other jobs beside. **Writing**: share of `genseg generate`'s time, per pair, in which files are written.

| dataset | plan | pairs | generate, pairs a CPU second | writing | quality, CPU s | peak memory, GB | report, CPU s | size, MB |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def pairs(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a dataset."""
    text = HEAD
    for row in rows:
        generate, quality, report = row["generate"], row["quality"], row["report"]
        cells = (
            row["dataset"],
            row["configuration"],
            row["pairs"],
            f"{generate['pairs_per_cpu_second']:.1f}",
            f"{100 * generate['share_of_writing']:.0f} %",
            f"{quality['cpu_seconds']:.0f}",
            f"{quality['peak_memory_bytes'] / 1e9:.1f}",
            f"{report['cpu_seconds']:.0f}",
            f"{report['bytes'] / 1e6:.1f}",
        )
        text += "| " + " | ".join(map(str, cells)) + " |\n"
    return text
