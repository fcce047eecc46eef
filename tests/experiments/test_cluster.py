"""The batch script of a run on several nodes, where a stand-in for `srun` starts the processes on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
echo $$ > srun.pid
trap 'kill -TERM $(jobs -p)' TERM
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NODEID=0 "$@" & pids+=($!); done
worst=0
for pid in "${pids[@]}"; do
  code=129
  while kill -0 "$pid" 2> /dev/null || ((code == 129)); do wait "$pid"; code=$?; done
  ((code > worst)) && worst=$code
done
exit $worst
"""
SMALL = ["experiment=anchor", "debug=smoke", "checkpoint_every=1", "eval_every=100", "inspect_every=100"]


@pytest.fixture
def submit(tmp_path):
    """Starts the script as job 7, with two tasks of one node."""
    commands = {"srun": SRUN, "scontrol": '#!/bin/bash\necho "$@" >> scontrol.log\n'}
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    job = {"JOB_ID": "7", "JOB_NAME": "rhythm", "NNODES": "1", "NTASKS": "2", "NTASKS_PER_NODE": "2"}
    job |= {"NODELIST": "localhost", "JOB_NODELIST": "localhost"}
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in job.items()}, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(tmp_path), environment["PATH"]])

    def start(*overrides):
        command = ["bash", str(ROOT / "experiments/cluster/ddp.sbatch"), *SMALL, "trainer.accelerator=cpu", *overrides]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_saves_is_requeued_and_goes_on_in_its_folder(submit, tmp_path):
    last = tmp_path / "logs/slurm/7/checkpoints/last.ckpt"
    process, deadline = submit("iterations=30"), time.monotonic() + 200
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert "Traceback" not in err
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    stopped = torch.load(last, weights_only=True)["iteration"]
    assert 1 <= stopped < 30
    process = submit(f"iterations={stopped + 1}")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-2000:]
    assert torch.load(last, weights_only=True)["iteration"] == stopped + 1
    assert (tmp_path / "logs/slurm/7/adapter/adapter_model.safetensors").is_file()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"  # it ended
