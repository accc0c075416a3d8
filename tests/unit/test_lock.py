"""One process at a time in a folder (kind: a folder is ours only if we made it)."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from nnunetv2_genseg.config import GenSegError, GenSegFileError
from nnunetv2_genseg.files.lock import FILE_NAME, alone_in

HOLDER = """
    import os, sys, time
    from pathlib import Path
    from nnunetv2_genseg.files.lock import alone_in
    with alone_in(Path(sys.argv[1])):
        if "child" in sys.argv and os.fork() == 0:
            time.sleep(60)  # as a process that loads data
            os._exit(0)
        print(os.getpid(), flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts another process that is in the folder until it reads a line."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline().strip() == str(process.pid)
        return process

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.communicate()


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path, holder):
    first = holder()
    for _ in range(2):
        with pytest.raises(GenSegError, match=rf"{tmp_path} is in use by process {first.pid} on \S+ since 20.*wait for its end"):
            alone_in(tmp_path).__enter__()
    first.communicate("end\n")
    assert first.returncode == 0
    with alone_in(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("child",)], ids=["alone", "its child lives on"])
def test_a_killed_process_holds_nothing(tmp_path, holder, arguments):
    first = holder(*arguments)
    first.kill()
    first.wait()
    assert (tmp_path / FILE_NAME).is_file()
    try:
        with alone_in(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / FILE_NAME).read_text()
    finally:
        os.killpg(first.pid, signal.SIGKILL) if arguments else None
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_waits_says_for_whom(holder, tmp_path):
    first = holder()
    waiting = "from pathlib import Path; from nnunetv2_genseg.files.lock import alone_in"
    enter = f"{waiting}\nwith alone_in(Path({str(tmp_path)!r}), wait=True): print('inside')"
    second = subprocess.Popen([sys.executable, "-c", enter], stdout=subprocess.PIPE, text=True)
    said = second.stdout.readline()
    assert said.startswith(f"{tmp_path} is in use by process {first.pid} on ")
    assert said.endswith("; waiting for its end\n")
    first.communicate("\n")
    assert second.communicate()[0] == "inside\n"


def test_a_process_that_waits_outside_finds_the_folder_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path):
        raise ZeroDivisionError
    with alone_in(tmp_path):
        with pytest.raises(GenSegError, match="in use by this very process"):
            alone_in(tmp_path).__enter__()
        assert (tmp_path / FILE_NAME).is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(GenSegFileError, match=f"gone/{FILE_NAME} cannot be written"):
        alone_in(tmp_path / "gone").__enter__()
