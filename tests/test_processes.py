"""What tells processes apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from charwright.processes import is_running, number_space, started_at
from charwright.training.ranks import join


def test_a_process_is_running_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        running = is_running(process.pid)
        process.communicate(b"\n")
    assert running == (os.name != "nt")
    assert not is_running(process.pid)
    assert not is_running(os.getpid()), "it is no other one"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say when a process was started")
def test_processes_of_one_number_differ_in_their_start() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        first = started_at(process.pid)
        assert first == started_at(process.pid) != started_at(os.getpid())
        process.communicate(b"\n")
    assert started_at(process.pid) == ""
    assert first.partition(":")[2].isdecimal()


def test_a_space_of_numbers_has_eight_digits() -> None:
    assert len(number_space()) == 8
    assert int(number_space(), 16) >= 0


def test_each_start_of_torchrun_has_a_name_of_its_own() -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    unnamed = join(environment | {"TORCHELASTIC_RUN_ID": "none"}).launch
    assert unnamed is not None
    assert unnamed.endswith(f":{os.getppid()}:{started_at(os.getppid())}")
    assert join(environment | {"TORCHELASTIC_RUN_ID": "mine"}).launch == "mine"
