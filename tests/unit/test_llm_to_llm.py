"""The third thread whole: problems in GSM8K's form, from one language model to another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bridges.__main__ import main
from bridges.connectors.translator import LOG, GatedTranslator
from bridges.hosts.causal import hidden_states, layer_states
from bridges.jobs import commands, llm_to_llm
from bridges.jobs import validation as reports
from bridges.jobs.llm_to_llm import LINES, NAMED, LlmToLlmJob, Settings, prepare, prompt, small
from bridges.tasks.gsm8k import Question, write_gsm8k
from bridges.tasks.word_problems import prompt as small_prompt
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from training_runs import brief_hosts, interrupted, log, refused
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# The form of GSM8K's lines: commas within numbers, dollar signs, the calculator's marks, several lines.
ROWS = [
    (
        f"Mia sells {i} houses at $80,000 each. {'She is happy. ' * (i % 3)}How much does she earn?",
        f"She earns {i}*80,000=$<<{i}*80000={i * 80000}>>{i * 80000:,}\n#### ${i * 80000:,}",
    )
    for i in range(2, 26)
]
TINY = ["--config", "small", "--steps", "6", "--every", "3", "--batch-size", "4", "--held-out", "6", "--asked", "5"]
TINY += ["--longest", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The small set, smaller still."""
    with pytest.MonkeyPatch.context() as patch:
        brief_hosts(patch)
        patch.setattr(llm_to_llm, "SMALL_TRAIN", 40)
        patch.setattr(llm_to_llm, "SMALL_TEST", 10)
        folder = tmp_path_factory.mktemp("problems")
        return small(folder / "data", folder / "cache")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Lines of GSM8K's own form, and a host as the hub has them: byte-level BPE, no padding token, bfloat16."""
    folder = tmp_path_factory.mktemp("real")
    for name, rows in (("train", ROWS[:20]), ("test", ROWS[20:])):
        write_gsm8k(folder / f"{name}.jsonl", rows)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    backend.train_from_iterator(
        [part for row in ROWS for part in row],
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    words = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[0], eos_token=special[1])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "host")
    words.save_pretrained(folder / "host")
    host = str(folder / "host")
    return replace(
        NAMED["small"],
        train=str(folder / "train.jsonl"),
        test=str(folder / "test.jsonl"),
        source=host,
        target=host,
        visible=True,
        kl_weight=0.03,
        warmup_steps=2,
    )


def tiny(data: Settings) -> Settings:
    return replace(data, steps=6, every=3, batch_size=4, held_out=6, asked=5, longest=8)


def files(data: Settings) -> list[str]:
    return [part for name in ("train", "test", "source", "target") for part in (f"--{name}", getattr(data, name))]


def test_the_named_configurations_are_the_logs_sweep() -> None:
    figures = {name: (s.learning_rate, s.warmup_steps, s.steps) for name, s in NAMED.items() if name != "small"}
    assert figures == {
        "conservative": (5e-5, 1000, 3500),
        "aggressive": (2e-4, 500, 2500),
        "high capacity": (1e-4, 750, 3000),
        "efficient": (1e-4, 600, 3000),
    }
    for name in figures:
        s = NAMED[name]
        assert s.translator == LOG[name]
        assert (s.gate_rate, s.scale, s.kl_weight, s.kl_positions, s.every, s.visible) == (3, 1, 0.03, 20, 250, True)
    command = ["train", "llm-to-llm", "--out", "x", "--train", "a", "--test", "b", "--config", "efficient"]
    asked = commands.settings(commands.parser().parse_args([*command, "--source", "one", "--target", "two"]))
    paths = {name: str(Path(file).resolve()) for name, file in (("train", "a"), ("test", "b"))}
    assert asked == replace(NAMED["efficient"], source="one", target="two", **paths)


def test_the_logs_translator_and_its_optimiser_groups() -> None:
    settings = NAMED["conservative"]
    with torch.device("meta"):
        module = torch.nn.Module()
        module.translator = GatedTranslator(4096, settings.translator, 4096)
    assert round(sum(p.numel() for p in module.parameters()) / 1e6, 2) == 142.78
    fit = llm_to_llm.fit_settings(settings, module)
    kinds = [(fit.group(name).rate, fit.decay(name)) for name, _ in module.named_parameters()]
    assert [kinds.count(kind) for kind in ((1.0, 0.01), (1.0, 0.0), (3.0, 0.0))] == [50, 87, 6]
    assert (fit.schedule, fit.clip, fit.every) == ("linear", 1.0, 250)


def test_a_run_by_the_command_line_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    brief_hosts(monkeypatch)
    monkeypatch.setattr(llm_to_llm, "SMALL_TRAIN", 30)
    monkeypatch.setattr(llm_to_llm, "SMALL_TEST", 5)
    out = tmp_path / "run"
    assert main(["train", "llm-to-llm", "--out", str(out), "--cache", str(tmp_path / "cache"), *TINY]) == 0
    lines = log(out)
    assert [line["step"] for line in lines if "validation" in line] == [3, 6]
    assert len(lines) == 8
    assert main(["validate", "llm-to-llm", "--out", str(out), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert all(f"| {line} |" in told for line in LINES)
    kept = json.loads((out / "report.json").read_text())
    assert set(kept["lines"]) == set(LINES)
    assert kept["lines"]["bridged"]["marked"]["n"] == len(kept["lines"]["bridged"]["answers"]) == 5
    assert main(["curves", str(out), "--output", str(tmp_path / "curves.png")]) == 0


def test_an_interrupted_run_goes_on_to_the_same_losses(
    data: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the penalty from the same step on, too."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = ["train", "llm-to-llm", *files(data), *TINY, "--kl-weight", "0.5", "--warmup-steps", "4"]
    assert main([*command, "--out", str(whole)]) == 0
    interrupted(monkeypatch, LlmToLlmJob, 4, [*command, "--out", str(broken)])
    assert main([*command, "--out", str(broken)]) == 0
    assert log(broken) == log(whole)
    kept, other = (load_file(folder / "best.safetensors") for folder in (whole, broken))
    assert all(torch.equal(kept[part], other[part]) for part in kept)


def test_three_lines_of_a_notebook(data: Settings, tmp_path: Path) -> None:
    made = prepare(tiny(data), tmp_path)
    made.train()
    assert "| bridged |" in reports.llm_to_llm(made)._repr_markdown_()


def test_a_prompt_is_the_small_hosts_own(data: Settings, tmp_path: Path) -> None:
    words = prepare(tiny(data), tmp_path).pair.target_words
    for question in ("anna has 3 eggs . how many eggs now ?", ""):
        ours, theirs = (words(text(question, words), add_special_tokens=False) for text in (prompt, small_prompt))
        assert ours["input_ids"] == theirs["input_ids"]


def test_one_layers_states_are_those_of_all(data: Settings, tmp_path: Path) -> None:
    made = prepare(tiny(data), tmp_path)
    ids, mask = made._asked(made.known[:3], "source")
    every = hidden_states(made.pair.source, ids, mask)
    for layer in (0, 1, -1):
        torch.testing.assert_close(layer_states(made.pair.source, ids, mask, layer), every[layer])
    with pytest.raises(ValueError, match="there is no layer 3 in a host of 2 blocks: give -3 to 2"):
        layer_states(made.pair.source, ids, mask, 3)


def real_job(real: Settings, out: Path) -> LlmToLlmJob:
    return prepare(replace(tiny(real), longest=12), out)


def test_lines_and_tokenizers_of_the_hubs_kind(real: Settings, tmp_path: Path) -> None:
    made = real_job(real, tmp_path)
    words = made.pair.target_words
    ids, mask, labels = made.read(made.known[:4])
    for row, q in zip(labels, made.known, strict=False):
        said = [i for i in row.tolist() if i != -100]
        assert words.decode(said) == f" {q.solution}{words.eos_token}"
        assert said.count(words.eos_token_id) == 1, "the end is taught, though padding is the end token too"
    assert (mask[:, 0] == 0).any(), "questions of unlike length are padded on the left"
    first = mask[0].bool()
    assert words.decode(ids[0][first]).startswith("<|begin_of_text|>Mia sells")
    assert made.known[0].answer == str(int(made.known[0].question.split()[2]) * 80000)
    history = made.train()
    assert len(history.losses) == 6
    assert len(made.answers("bridged")) == 4
    assert made.pair.target.dtype == torch.bfloat16


def test_the_penalty_begins_after_the_warm_up(real: Settings, tmp_path: Path) -> None:
    made = real_job(real, tmp_path)
    assert made.summed_loss(made.known[:4])[2] == 0
    made.step = 2
    assert made.summed_loss(made.known[:4])[2] > 0


def test_the_loss_counts_tokens_and_padding_changes_nothing(data: Settings, tmp_path: Path) -> None:
    made = prepare(tiny(data), tmp_path)
    each = [made.summed_loss([q]) for q in made.known[:6]]
    assert len({count for _, count, _ in each}) > 1
    expected = sum(total.item() for total, *_ in each) / sum(count for _, count, _ in each)
    assert made.batch_loss(torch.arange(6)).item() == pytest.approx(expected, rel=1e-4)


def test_the_target_reads_the_question_only_where_it_is_visible(data: Settings, tmp_path: Path) -> None:
    for visible in (True, False):
        made = prepare(replace(tiny(data), visible=visible), tmp_path / str(visible))
        ids, mask, *_ = made.read(made.known[:1])
        said = made.pair.target_words.decode(ids[0][mask[0].bool()])
        assert ("how many" in said) == visible


def test_the_four_lines_differ_in_what_is_read(data: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepare(tiny(data), tmp_path)
    seen: dict[str, list[list[Question]]] = {}
    soft = made.soft
    for line in LINES:
        read = seen.setdefault(line, [])
        monkeypatch.setattr(made, "soft", lambda some, read=read: read.append(list(some)) or soft(some))
        made.answers(line)
    assert seen["target alone"] == seen["source alone"] == []
    whole, shuffled = ([q for part in seen[line] for q in part] for line in ("bridged", "shuffled source"))
    assert whole == made.test
    assert sorted(map(str, shuffled)) == sorted(map(str, whole))
    assert not any(a == b for a, b in zip(whole, shuffled, strict=True))


def test_a_run_is_refused_in_one_line(data: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, nothing = tmp_path / "run", tmp_path / "nothing"
    command = ["train", "llm-to-llm", *files(data), *TINY, "--out", out]
    assert "no causal language model could be loaded" in refused(capsys, *command, "--target", nothing)
    assert "is not there: give GSM8K's train.jsonl" in refused(capsys, *command, "--test", nothing)
    assert "belong together" in refused(capsys, "train", "llm-to-llm", "--train", data.train, "--out", out)
    assert "40 samples, 39 of them held out" in refused(capsys, *command, "--held-out", "39")
    assert "there is no layer 9" in refused(capsys, *command, "--source-layer", "9")
    assert not out.exists()


def test_a_sketch_has_the_shape_of_bridge_and_hosts(data: Settings, tmp_path: Path) -> None:
    made = prepare(tiny(data), tmp_path)
    sketch, loss = made.sketch()
    trained = [p.shape for p in sketch.parameters() if p.requires_grad]
    assert trained == [p.shape for p in made.module.parameters()]
    assert torch.isfinite(loss())
