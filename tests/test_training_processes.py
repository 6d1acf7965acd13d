"""Training in several processes: what one would compute, in less memory each, and nothing stays behind a death."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file
from training_fixtures import CPU, EOS, examples_for, run, save_model, with_

from deployments.command.output.errors import describe_error
from pipeline_lib.config import ConfigError, PolicyConfig, TrainConfig
from pipeline_lib.training.batches.batching import deal, idle_batch, plan_updates
from pipeline_lib.training.loop import pack_examples
from pipeline_lib.training.open_policy import load_policy
from pipeline_lib.training.processes import launch
from pipeline_lib.training.processes.job import Job, read_job, write_job
from pipeline_lib.training.processes.launch import TrainingProcessError, check_processes
from pipeline_lib.training.result import TrainResult
from pipeline_lib.training.training_memory import training_memory

NUM_TREES = 9
ONE = {"num_processes": 1, "shard_weights": False}
TWO = {"num_processes": 2}
SHARDED = TWO | {"shard_weights": True}
KILLED_AT = (2, 5)  # updates, between the checkpoints of every second one
SHORT = {"tokens_per_update": 1024, "tokens_per_microbatch": 256, "num_epochs": 3}  # 3 to 6 passes an update
LONG = {"num_epochs": 4, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(model_dir, tmp_path_factory):
    """The policy of the iteration before."""
    folder = tmp_path_factory.mktemp("previous")
    run(model_dir, folder, config=with_(learning_rate=1e-2, warmup_updates=0))
    return folder / "out"


def train(model_dir: Path, folder: Path, config: TrainConfig, previous: Path | None, **more: Any) -> TrainResult:
    return run(model_dir, folder, config=config, previous=previous, count=NUM_TREES, **more)


def packed(**changes: Any) -> list[Any]:
    return pack_examples(examples_for(with_(**changes), NUM_TREES), with_(**changes), eos_token_id=EOS)


def job(folder: Path, *, model_dir: Path | str = "owner/name", previous: Path | None = None, **changes: Any) -> Job:
    return Job(model_dir, previous, folder / "out", folder / "checkpoints", with_(**TWO | changes), CPU, 0)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "out").iterdir())


CASES = {
    "the alarm ends it": (SHORT | TWO | {"objective": "step-dpo", "kl_alarm": 0.0015}, False),
    "all weights": (SHORT | SHARDED | {"full_finetuning": True, "gradient_checkpointing": True}, False),
    "no reference": (SHORT | SHARDED | {"objective": "rft", "kl_beta": 0.0}, False),
    "second iteration": (LONG | SHARDED, True),
}


@pytest.fixture(scope="module")
def trained_by_two(model_dir, adapter, tmp_path_factory):
    """Folders of all cases, each with ``out`` and ``history.json``."""
    meeting = tmp_path_factory.mktemp("team")
    folders = {name: tmp_path_factory.mktemp("case") for name in CASES}
    for name, (changes, has_previous) in CASES.items():
        written = job(folders[name], model_dir=model_dir, previous=adapter if has_previous else None, **changes)
        write_job(folders[name], written, packed(**changes))
    command = [sys.executable, str(Path(__file__).with_name("training_team.py")), str(meeting), *folders.values()]
    team = [subprocess.Popen(command, env=launch._environment(rank, written)) for rank in range(2)]
    try:
        assert [process.wait(120) for process in team] == [0, 0]
    finally:
        for process in team:
            process.kill()
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(model_dir, adapter, tmp_path, trained_by_two, name):
    changes, has_previous = CASES[name]
    alone = train(model_dir, tmp_path, with_(**changes | ONE), adapter if has_previous else None)
    history = json.loads((trained_by_two[name] / "history.json").read_text())
    for expected, update in zip(alone.history, history, strict=True):
        padded = {"num_tokens": expected["num_tokens"]}  # depends on how an update is cut
        assert update | padded == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert alone.stopped_by_kl_alarm == ("kl_alarm" in changes)
    folders = (tmp_path, trained_by_two[name])
    assert [path.name for path in files(folders[0])] == [path.name for path in files(folders[1])]
    weights, others = (load_file(next(folder.glob("out/*.safetensors"))) for folder in folders)
    assert weights.keys() == others.keys()
    for key, weight in weights.items():
        assert np.linalg.norm(others[key] - weight) <= 1e-4 * np.linalg.norm(weight), key


def workers_of(pid: int) -> list[psutil.Process]:
    """The training processes of `pid`, rank by rank."""
    children = [
        process
        for process in psutil.Process(pid).children()
        if "pipeline_lib.training.processes.training_process" in process.cmdline()
    ]
    return sorted(children, key=lambda process: process.environ()["RANK"])


@pytest.mark.slow
def test_a_run_that_loses_a_process_and_then_its_parent_ends_with_the_same_bytes(
    model_dir, adapter, tmp_path, trained_by_two, caplog, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "killed"
    workers: list[psutil.Process] = []
    changes, _ = CASES["second iteration"]

    def go_on(on_update: Any) -> TrainResult:
        return train(model_dir, folder, with_(**changes), adapter, on_update=on_update)

    def kill_one(metrics: dict[str, float]) -> None:
        if metrics["update"] == KILLED_AT[0]:
            workers.extend(workers_of(os.getpid()))
            workers[1].kill()

    with pytest.raises(TrainingProcessError) as died:
        go_on(kill_one)
    line, _ = describe_error(died.value)
    assert line.startswith("coppice: training process 2 of 2 was killed by SIGKILL, often for lack of memory (after ")
    assert line.endswith("run again, training goes on from the last checkpoint")
    assert "training process 2 of 2: the last lines of its stderr" in caplog.text
    assert len(workers) == 2
    assert not any(process.is_running() for process in workers)

    def kill_parent(metrics: dict[str, float]) -> None:
        if metrics["update"] == KILLED_AT[1]:
            pids.put([process.pid for process in workers_of(os.getpid())])
            os.kill(os.getpid(), signal.SIGKILL)

    fork = multiprocessing.get_context("fork")
    pids = fork.SimpleQueue()
    parent = fork.Process(target=go_on, args=(kill_parent,))
    parent.start()
    orphans = pids.get()
    parent.join()
    assert parent.exitcode == -signal.SIGKILL
    assert len(orphans) == 2
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, orphans)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, orphans))
    assert not list(tmp_path.glob("coppice-training-*"))
    assert not (folder / "out").exists()

    again: list[float] = []
    resumed = go_on(lambda metrics: again.append(metrics["update"]))
    assert KILLED_AT[1] <= again[0] + 1 < resumed.num_updates
    undisturbed = trained_by_two["second iteration"]
    assert list(resumed.history) == json.loads((undisturbed / "history.json").read_text())
    for path in files(undisturbed):
        assert path.read_bytes() == (folder / "out" / path.name).read_bytes(), path.name


@contextmanager
def two_processes_of_which_this_is_one() -> Iterator[Any]:
    """A mesh whose other process is never asked for anything."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("full_finetuning", [False, True])
def test_half_of_the_weights_lie_with_each_of_two_processes(model_dir, full_finetuning):
    trained = load_policy(model_dir, None, with_(full_finetuning=full_finetuning), CPU, seed=0)

    def local_bytes() -> int:
        models = [model for model in (trained.adapters or trained.model, trained.frozen) if model is not None]
        parameters = [parameter for model in models for parameter in model.parameters()]
        return sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in parameters)

    before = local_bytes()
    with two_processes_of_which_this_is_one() as mesh:
        trained.shard(mesh)
        assert local_bytes() == pytest.approx(before / 2, rel=0.01)


def test_the_estimate_of_memory_follows_the_shards(model_dir):
    def estimate(**changes: Any) -> Any:
        return training_memory(model_dir, with_(full_finetuning=True, **changes), CPU)

    plain, two, many = estimate(), estimate(**SHARDED), estimate(num_processes=1000, shard_weights=True)
    assert estimate(**TWO) == plain
    assert two.trained == plain.trained / 2
    assert two.weights == pytest.approx(plain.weights / 2 + many.weights, rel=0.01)  # what is held whole stays


def test_passes_are_dealt_out_evenly_and_each_once():
    trees = packed()
    for num_processes in (1, 2, 3, 4):
        for batches in plan_updates(
            trees,
            np.arange(len(trees)),
            tokens_per_update=1024,
            tokens_per_microbatch=300,
            break_even_tokens=768,
            num_processes=num_processes,
        ):
            shares = deal(batches, num_processes)
            assert sorted(id(batch) for share in shares for batch in share) == sorted(map(id, batches))
            assert max(map(len, shares)) == -(-len(batches) // num_processes)
            if len(batches) % num_processes == 0:
                tokens = [sum(batch.num_tokens for batch in share) for share in shares]
                assert max(tokens) - min(tokens) <= max(batch.num_tokens for batch in batches) / 2
    assert deal(batches, 1) == [batches]


def test_updates_hold_the_same_trees_for_any_number_of_processes():
    trees = packed()
    limits = {"tokens_per_update": 512, "tokens_per_microbatch": 512, "break_even_tokens": 768}
    plans = [list(plan_updates(trees, np.arange(len(trees)), **limits, num_processes=n)) for n in (1, 2, 3)]
    targets = [[sorted(np.concatenate([b.targets for b in batches])) for batches in plan] for plan in plans]
    assert targets[0] == targets[1] == targets[2]
    assert {len(batches) for batches in plans[0]} == {1}
    assert all(len(batches) > 1 for batches in plans[1])


def test_an_idle_pass_teaches_nothing():
    batch = idle_batch()
    assert (batch.num_tokens, batch.num_unique_tokens, batch.weights.tolist()) == (8, 0, [0.0])


@pytest.mark.parametrize("objective", ["relative-correctness", "step-dpo"])
def test_a_job_travels_as_it_is(tmp_path, objective):
    trees = packed(objective=objective)
    write_job(tmp_path, job(tmp_path), trees)
    read, same = read_job(tmp_path)
    assert read == job(tmp_path)
    for one, other in zip(trees, same, strict=True):
        for name in one.__slots__:
            before, after = getattr(one, name), getattr(other, name)
            assert np.array_equal(before, after), name
            assert getattr(before, "dtype", int) == getattr(after, "dtype", int), name


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("""print('{"kind": "ValueError", "error": "no window"}', flush=True)""", ValueError, "^no window$"),
        (
            "import sys; print('noise\\nno memory', file=sys.stderr); sys.exit(3)",
            TrainingProcessError,
            r"3: no memory \(before its first update\); run again",
        ),
        ("import os; os.kill(os.getpid(), 11)", TrainingProcessError, r"1 of 1 was killed by SIGSEGV \(before"),
    ],
)
def test_the_last_word_of_a_process_becomes_one_line(tmp_path, script, error, message):
    with launch._stderr(tmp_path, 0).open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=log)
    with pytest.raises(error, match=message):
        launch._Listener(tmp_path, [process]).history(None)
    process.wait()


def test_the_process_that_was_killed_is_named_not_the_one_that_lost_it(tmp_path):
    scripts = ["import sys; sys.exit('connection reset')", "import os, time; time.sleep(0.3); os.kill(os.getpid(), 9)"]
    both = []
    for rank, script in enumerate(scripts):
        with launch._stderr(tmp_path, rank).open("wb") as log:
            both.append(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=log))
    with pytest.raises(TrainingProcessError, match="2 of 2 was killed by SIGKILL"):
        launch._Listener(tmp_path, both).history(None)


def test_a_promised_error_comes_from_the_processes_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "write_job", lambda folder, *_: (folder / "job.json").write_text("no job"))
    with pytest.raises(ValueError, match="Expecting value"):
        launch.take_updates_in_processes(job(tmp_path), [], None)


@pytest.mark.parametrize(
    ("changes", "device", "num_gpus", "message"),
    [
        ({"shard_weights": True}, "cpu", 0, r"set train\.num_processes above 1"),
        ({"num_processes": 3}, "cuda", 2, r"train\.num_processes=3, but this machine has 2 GPUs"),
        ({"num_processes": 2}, "cuda:1", 2, r"policy\.device=cuda:1 is one GPU"),
    ],
)
def test_processes_that_cannot_be_had_are_refused(monkeypatch, changes, device, num_gpus, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    with pytest.raises(ConfigError, match=message) as refused:
        check_processes(with_(**changes), PolicyConfig(device=device))
    assert "\n" not in str(refused.value)


def test_a_checkpoint_serves_any_number_of_processes(tmp_path):
    from pipeline_lib.training.trainer import _fingerprint

    trees = packed()
    prints = [_fingerprint(job(tmp_path, **changes), trees) for changes in (ONE, TWO, SHARDED, {"num_epochs": 7})]
    assert prints[0] == prints[1] == prints[2] != prints[3]
