"""Several machines: network namespaces, each with an address of its own, on one bridge.

A machine that is killed and comes back joins the others again, and the run ends as an undisturbed one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchrun import log, train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")]

MACHINES = 3
TIMEOUT = 300.0
OPTIONS = [
    *("--cell", "lstm", "--layers", "2", "--dropout", "0.2", "--recurrent-dropout", "0.2", "--state-reset", "0.1"),
    *("--units", "16", "--embedding-size", "8", "--batch", "7", "--seq-length", "16", "--steps", "600"),
    *("--learning-rate", "0.01", "--precision", "f32", "--device", "cpu", "--log-every", "1", "--threads", "1"),
]


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Machines:
    """Network namespaces, connected by a bridge; machine i has the address 10.77.I.(i + 1)."""

    def __init__(self) -> None:
        self.tag = f"cw{os.getpid() % 100_000}"
        self.network = f"10.77.{os.getpid() % 256}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def create(self) -> None:
        bridge = f"{self.tag}b"
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        for number in range(MACHINES):
            name, outside = self.name(number), f"{self.tag}v{number}"
            ip("netns", "add", name)
            ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", outside, "master", bridge, "up")
            ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")

    def remove(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for number in range(MACHINES):
            found = subprocess.run(["ip", "netns", "pids", self.name(number)], capture_output=True, check=False)
            for pid in found.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", self.name(number)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", f"{self.tag}b"], capture_output=True, check=False)

    def name(self, number: int) -> str:
        return f"{self.tag}m{number}"

    def address(self, number: int) -> str:
        return f"{self.network}.{number + 1}"

    def start(self, number: int, output: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start torchrun on a machine, with the rendezvous on machine 0."""
        command = ["ip", "netns", "exec", self.name(number), sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", str(MACHINES), "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-id", "novel"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.address(0)}:29511"]
        # The name of this machine does not resolve to the address, by which torchrun would know the host of its store.
        command += [
            "--rdzv-conf",
            f"is_host={int(number == 0)}",
            "--local-addr",
            self.address(number),
            "-m",
            "charwright",
            "train",
            *map(str, arguments),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
        # With a store that the machines share, PyTorch 2.13 gives a torchrun that joins late no address of rank 0.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with output.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        self.processes.append(process)
        return process

    def kill(self, number: int) -> None:
        """Kill everything that runs on a machine, torchrun included."""
        found = subprocess.run(["ip", "netns", "pids", self.name(number)], capture_output=True, check=True)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def machines() -> Iterator[Machines]:
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    machines = Machines()
    try:
        machines.create()
        yield machines
    finally:
        machines.remove()


def test_a_machine_that_is_killed_and_comes_back_changes_no_loss(machines: Machines, tmp_path: Path) -> None:
    words = ["the ", "quick\n", "brown ", "fox ", "jumps ", "over "]
    corpus, alone, together = (tmp_path / name for name in ("text.txt", "alone", "together"))
    corpus.write_text("".join(words[i * i * i % 6] + words[i % 5] for i in range(1430)), encoding="utf-8")
    train(1, corpus, "--out", alone, *OPTIONS)

    outputs = [tmp_path / f"machine-{number}.txt" for number in range(MACHINES)]
    arguments = [corpus, "--out", together, *OPTIONS, "--checkpoint-minutes", "0.005"]
    running = [machines.start(number, output, *arguments) for number, output in enumerate(outputs)]

    def shown() -> str:
        return "\n".join(output.read_text(errors="replace")[-3000:] for output in outputs)

    deadline = time.monotonic() + TIMEOUT
    while not (together / "checkpoints").exists() or not log(together):
        assert time.monotonic() < deadline, shown()
        assert all(process.poll() is None for process in running), shown()
        time.sleep(0.05)
    machines.kill(2)
    running[2].wait()
    time.sleep(1)
    running[2] = machines.start(2, outputs[2], *arguments)
    for process in running:
        assert process.wait(timeout=max(1.0, deadline - time.monotonic())) == 0, shown()

    events = log(together)
    assert [event["event"] for event in events].count("start") == 1
    assert [event["event"] for event in events].count("resume") >= 1
    ends = [log(run)[-1] for run in (alone, together)]
    assert [end["reason"] for end in ends] == ["done", "done"]
    assert ends[0]["step"] == ends[1]["step"] == 600
    assert ends[1]["best_loss"] == pytest.approx(ends[0]["best_loss"], rel=1e-3)
    expected, found = ({e["step"]: e["loss"] for e in log(run) if e["event"] == "step"} for run in (alone, together))
    assert found.keys() == expected.keys()
    assert [found[step] for step in list(found)[:20]] == pytest.approx(
        [expected[s] for s in list(found)[:20]], rel=1e-3
    )
