"""The command line of the three threads: its options, its estimates, and several processes under Accelerate."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import training_runs
from bridges.__main__ import main
from bridges.jobs import commands, image_text, vector_to_text
from bridges.jobs.job import read_log, settings_of
from training_runs import brief_hosts, log, refused

FLAGS = {"vector-to-text": "--features", "image-text": "--pairs", "llm-to-llm": "--train"}


def parsed(*command: str) -> object:
    return commands.settings(commands.parser().parse_args(["train", *command, "--out", "x"]))


def test_what_is_not_given_comes_from_the_named_configuration() -> None:
    for name, thread in commands.THREADS.items():
        named, flag = thread.module.NAMED, FLAGS[name]
        assert thread.data == flag.removeprefix("--")
        first = next(iter(named))
        assert parsed(name) == named["small"]
        assert parsed(name, flag, "/a") == replace(named[first], **{thread.data: "/a"})
        for config, settings in named.items():
            assert parsed(name, "--config", config) == settings
            assert parsed(name, "--config", config, "--seed", "3") == replace(settings, seed=3)
    assert parsed("vector-to-text", "--no-standardise").standardise is False
    assert parsed("llm-to-llm", "--kl-weight", "0").kl_weight == 0


def test_every_setting_says_what_it_is() -> None:
    for thread in commands.THREADS.values():
        for part in fields(thread.module.NAMED["small"]):
            value = getattr(thread.module.NAMED["small"], part.name)
            if isinstance(value, (str, int, float)):
                assert part.metadata["help"], part.name


def test_settings_come_back_from_their_folder(tmp_path: Path) -> None:
    for name, thread in commands.THREADS.items():
        for config, settings in thread.module.NAMED.items():
            folder = tmp_path / name / config
            thread.module.claim(folder, name, settings, [], None).take()
            assert settings_of(folder, name, thread.module.NAMED["small"]) == settings


@pytest.mark.parametrize(
    "command", [["--help"], ["train", "--help"], ["train", "llm-to-llm", "--help"], ["curves", "-h"]]
)
def test_help_is_given(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "train" in told or "runs" in told
    if command[0] == "--help":
        assert all(name in told for name in ("host", "checkup", "train", "validate", "curves"))


def test_a_word_too_many_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["host", "t5", "--cache", "x", "--odd"], ["train", "vector-to-text", "--out", "x", "--odd"]):
        with pytest.raises(SystemExit):
            main(command)
        assert "unrecognized arguments: --odd" in capsys.readouterr().err


def test_files_without_data_to_train_on_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for thread, flag in (("vector-to-text", "--manifest"), ("llm-to-llm", "--test")):
        told = refused(capsys, "train", thread, flag, "some", "--out", tmp_path / "run")
        assert f"{flag} is given and {FLAGS[thread]} is not" in told
    assert not (tmp_path / "run").exists()


def test_a_torn_log_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2.0}]
    assert read_log(tmp_path / "nothing") == []


def test_without_matplotlib_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install '.[book]'" in refused(capsys, "curves", tmp_path)


def without_dropout(data: vector_to_text.Settings) -> None:
    path = Path(data.host) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dropout_rate": 0.0}))


def test_two_processes_train_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mean over tokens, and a contrast with the other process's pairs."""
    brief_hosts(monkeypatch)
    monkeypatch.setattr(vector_to_text, "SMALL_SENTENCES", 60)
    monkeypatch.setattr(image_text, "SMALL_PAIRS", 60)
    clips = vector_to_text.small(tmp_path / "clips", tmp_path / "cache")
    without_dropout(clips)
    pairs = image_text.small(tmp_path / "pairs", tmp_path / "cache")
    common = ["--config", "small", "--batch-size", "8", "--epochs", "1", "--every", "4", "--device", "cpu", "--out"]
    threads = {
        "vector-to-text": (clips, ("features", "manifest", "val_features", "val_manifest", "host")),
        "image-text": (pairs, ("pairs", "clip")),
    }
    commands_of_two = []
    for thread, (data, names) in threads.items():
        files = [part for name in names for part in (f"--{name.replace('_', '-')}", getattr(data, name))]
        command = ["train", thread, *files, *common]
        assert main([*command, str(tmp_path / f"{thread}-1")]) == 0
        told = capsys.readouterr().out
        assert "parameters trained" in told
        assert "steps to do" in told
        commands_of_two.append([*command, str(tmp_path / f"{thread}-2")])

    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    env = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | os.environ
    ran = subprocess.run(
        [*launch, training_runs.__file__, json.dumps(commands_of_two)],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("steps to do") == 2, "the main process alone speaks, once for each training"
    for thread in threads:
        one, two = (log(tmp_path / f"{thread}-{count}") for count in (1, 2))
        assert len(one) > 8
        assert [line.keys() for line in one] == [line.keys() for line in two]
        for ours, theirs in zip(one, two, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
