"""The commands of the first tutorial, as they stand on the page, in one shell."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.integration.processes import LONGEST

from .conftest import PROGRAMS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "first-training.md"
FOLD = Path("nnUNet_results") / "Dataset901_Phantom2D" / "GenSegTrainerShort__nnUNetPlans__2d" / "fold_0"


def test_the_commands_of_the_tutorial_give_what_it_promises(tmp_path: Path):
    text = PAGE.read_text(encoding="utf-8")
    install, *steps = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert "pip install ." in install  # tests/wheel does this
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {key: value for key, value in os.environ.items() if not key.lower().startswith("nnunet_")}
    environment |= {"PATH": f"{PROGRAMS}:{environment['PATH']}", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(steps)],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    folder = tmp_path / "tutorial"
    assert str(FOLD) in text
    assert (folder / "preview" / "index.html").is_file()
    for name in re.findall(r"^- `(genseg_\w+\.\w+)`", text, re.MULTILINE):
        assert (folder / FOLD / name).is_file(), name
    assert len(list((folder / "predicted").glob("*.png"))) == 4
