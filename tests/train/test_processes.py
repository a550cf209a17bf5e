"""Real processes: several that train together, and one that is killed and goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from runtime.errors import CheckpointError, UsageError
from train.config import TrainConfig
from train.fit_options import FitOptions
from train.run import fit_run

SETTINGS = [
    *("--backbone", "dgsnet-tiny-p32", "--pretrained", "random", "--no-tensorboard", "-q"),
    *("--set", "data.batch=8", "--set", "schedule.stage1_epochs=1"),
]


def command(data: Path, run: Path, *arguments: str, processes: int = 1) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(torchrun if processes > 1 else []), "-m", "train", "fit"]
    return [*start, str(data), "-o", str(run), *SETTINGS, *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}  # torchrun's own default; the order of sums depends on it


def fit(data: Path, run: Path, *arguments: str, processes: int = 1) -> str:
    done = subprocess.run(
        command(data, run, *arguments, processes=processes),
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint.safetensors")


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "logs" / "steps.jsonl").read_text().splitlines()]


def test_two_processes__equal_one(data_set: Path, tmp_path: Path) -> None:
    """24 steps, fp32, no dropout, no padded sample: the windows of 8 are shared 4 and 4."""
    settings = ("--set", "lora.dropout=0", "--set", "schedule.stage2_epochs=7")
    fit(data_set, tmp_path / "one", *settings)
    out = fit(data_set, tmp_path / "two", *settings, processes=2)
    assert out.count("trained on 24 pictures, 24 steps") == 1  # the first process alone speaks
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert any(not torch.equal(two[name], tensor) for name, tensor in one.items())
    for name, tensor in one.items():
        assert float((two[name] - tensor).abs().max()) <= 1e-3 * 1e-4, name
    logs = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(logs[0]) == len(logs[1]) == 24 + 7
    for first, second in zip(*logs, strict=True):
        assert first == pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize(
    ("recipe", "most"),
    [
        ("dgs", 2),
        pytest.param("dgs", 4, marks=pytest.mark.slow),
        pytest.param("lora", 3, marks=pytest.mark.slow),
    ],
)
def test_killed_run__resumes_bit_for_bit(data_set: Path, tmp_path: Path, recipe: str, most: int) -> None:
    """Kill -9 again and again, with dropout, augmentation and workers, then one look at every tensor."""
    settings = (
        *("--recipe", recipe, "--set", "schedule.stage2_epochs=4", "--set", "lora.dropout=0.5"),
        *("--set", "data.workers=1", "--set", "data.cache_gib=0", "--set", "schedule.save_every=2"),
        *("--set", "schedule.keep=best", "--set", "schedule.keep_last=2"),
        *("--set", "schedule.validate_every=3"),
        *("--set", "surgery.text_warmup_steps=3", "--set", "optim.accumulate=2"),
    )  # fmt: skip
    fit(data_set, tmp_path / "whole", *settings)
    run = tmp_path / "killed"
    draw = random.Random(5)
    kills = 0
    for _ in range(12):
        seen = steps_saved(run)
        process = subprocess.Popen(
            command(data_set, run, "--resume", *settings),
            env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while process.poll() is None and steps_saved(run) <= seen:
            time.sleep(0.02)
        time.sleep(draw.random() * 0.6)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        if kills == most:
            break
    assert kills >= 2
    assert not (run / "checkpoint.json").exists()
    fit(data_set, run, "--resume", *settings)
    whole, resumed = weights(tmp_path / "whole"), weights(run)
    assert set(whole) == set(resumed)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert records(run) == records(tmp_path / "whole")
    assert sorted(p.name for p in (run / "kept").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole" / "kept").iterdir()
    )
    assert not (run / "resume").exists()
    assert "finished already" in fit(data_set, run, "--resume", *settings)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run__saves_its_step(data_set: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    settings = ("--recipe", "lora", "--set", "schedule.stage2_epochs=300")
    workers = ("--set", "data.workers=1", "--set", "data.cache_gib=0")
    process = subprocess.Popen(
        command(data_set, run, *settings, *workers, "--set", "schedule.save_every=1"),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and steps_saved(run) < 2:
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does, workers included
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == "stopped"
    assert not (run / "checkpoint.json").exists()
    assert steps_saved(run) >= 2


def steps_saved(run: Path) -> int:
    try:
        return int(json.loads((run / "resume" / "state.json").read_text())["position"]["total_step"])
    except FileNotFoundError:
        return -1


def test_resume__refuses_another_run(data_set: Path, tmp_path: Path) -> None:
    """One unfinished run, several wrong ways to go on with it; the right one is tested above."""
    data, run = Path(shutil.copytree(data_set, tmp_path / "data")), tmp_path / "run"
    process = subprocess.Popen(
        command(data, run, "--set", "schedule.save_every=1"),
        env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and steps_saved(run) < 1:
        time.sleep(0.02)
    process.kill()
    process.wait()

    config = TrainConfig(backbone="dgsnet-tiny-p32", pretrained="random").with_values(
        [("data.batch", 8), ("schedule.stage1_epochs", 1)]
    )
    resume = FitOptions(resume=True, tensorboard=False)
    with pytest.raises(UsageError, match="holds an unfinished run; give --resume"):
        fit_run(data, run, config, FitOptions(tensorboard=False))
    with pytest.raises(UsageError, match="--resume and --overwrite: found both"):
        fit_run(data, run, config, FitOptions(resume=True, overwrite=True))
    with pytest.raises(CheckpointError, match=r"optim\.lr was 0\.0001 when the run began and is 0\.001 now"):
        fit_run(data, run, config.with_value("optim.lr", 1e-3), resume)
    (data / "val/blur/0_real/100.png").unlink(missing_ok=True)
    next((data / "val/blur/0_real").glob("*.png")).unlink()
    with pytest.raises(CheckpointError, match="data set, val was 12 when the run began and is 11 now"):
        fit_run(data, run, config, resume)
    state = run / "resume" / "state.json"
    # A kill between the two files of a save leaves a second step file, which no state names.
    tensors = state.parent / json.loads(state.read_text())["tensors"]["file"]
    content = bytearray(tensors.read_bytes())
    content[-5] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(CheckpointError, match="the hash of its tensors differs"):
        fit_run(data, run, config, resume)
    assert state.exists()
