"""What SIGTERM leaves (kind: a user's error or ours)."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from nnunetv2_genseg.trainers.guarding import ending_on_sigterm

PROGRAM = """
    import multiprocessing, sys, time
    from nnunetv2_genseg.trainers.guarding import ending_on_sigterm

    def load(queue):
        while True:
            queue.put(bytes(10**6))  # which nobody reads

    with ending_on_sigterm():
        context = multiprocessing.get_context("fork")
        for daemon in (True, False):
            context.Process(target=load, args=(context.Queue(2),), daemon=daemon).start()
        try:
            print("ready", flush=True)
            time.sleep(600)
        finally:
            print("tidied up", flush=True)
"""


def test_sigterm_ends_a_process_with_those_that_it_started():
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # the queues are full
    process.terminate()
    try:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGTERM
        assert output == "tidied up\n"
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_handler_of_somebody_else_stays():
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with ending_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGTERM) is own
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with ending_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
