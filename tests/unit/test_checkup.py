"""The check-up: what it names, in which order, what it lets pass, and what it says of input it cannot use."""

import json
import math
import re
import runpy
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bridges.instruments.advice import ADVICE, COSTS
from bridges.instruments.alignment import trend
from bridges.instruments.anchor import AnchorReach
from bridges.instruments.chance import beats_chance
from bridges.instruments.checkup import Contrastive, Generative, checkup, read_bridge
from bridges.instruments.conditioning import derangement
from bridges.instruments.generation import Degeneration
from bridges.instruments.padding import PaddingShift
from bridges.instruments.plots import Profile
from bridges.instruments.report import FAULTS, Reading, Report
from press.chapter import TOPICS, link_to
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).parents[2]
WORDS, WIDTH, TOKENS, SAMPLES = 30, 16, 4, 120


class Host(nn.Module):
    """Reads tokens and says one word, by the sum of what they hold: a host that can be solved by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(1)))

    def forward(self, tokens: Tensor) -> Tensor:
        return normalize(tokens.mean(1), dim=-1) @ normalize(self.table, dim=-1).T * 20


class Connector(nn.Module):
    """Repeats the input's own vector, which is the word's embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate = nn.Parameter(torch.tensor([2.0]))
        self.norm = nn.BatchNorm1d(WIDTH, affine=False)
        nn.init.eye_(self.map.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        self.norm(inputs)  # has running statistics, which a check-up may not change
        return (self.map(inputs) * self.gate.tanh()).unsqueeze(1).expand(-1, TOKENS, -1)


def speaking() -> Generative:
    torch.manual_seed(0)
    host = Host().eval().requires_grad_(False)
    said = torch.arange(SAMPLES) % WORDS
    inputs = host.table[said] + 0.1 * torch.randn(SAMPLES, WIDTH)

    def loss(tokens: Tensor, rows: Tensor) -> Tensor:
        return cross_entropy(host(tokens), said[rows])

    return Generative(Connector().eval(), inputs, loss, said[:, None], host.table)


class Space(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.eye_(self.image.weight)
        nn.init.eye_(self.text.weight)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return normalize(self.image(image.mean(1)), dim=-1), normalize(self.text(text), dim=-1)


def meeting() -> Contrastive:
    torch.manual_seed(0)
    text = torch.randn(SAMPLES, WIDTH)
    return Contrastive(Space().eval(), text[:, None] + 0.1 * torch.randn(SAMPLES, 3, WIDTH), text)


def first(bridge: Generative | Contrastive) -> str:
    return checkup(bridge).headline


def test_healthy_bridges_raise_nothing() -> None:
    assert not checkup(speaking()).faults, str(checkup(speaking()))
    assert not checkup(meeting()).faults, str(checkup(meeting()))


def test_what_is_wrong_with_the_inputs_is_named_first() -> None:
    b = speaking()
    same = b.inputs[:1].expand_as(b.inputs)
    assert first(replace(b, inputs=same)) == "constant inputs"
    # At random: where each word's input stood with the next word's, a probe would rightly find a relation.
    assert first(replace(b, inputs=b.inputs[derangement(SAMPLES)])) == "pairs that do not belong together"
    broken = b.inputs.clone()
    broken[5, 2] = torch.inf
    assert first(replace(b, inputs=broken)) == "values that are not finite"
    assert first(replace(b, leak=0.9)) == "the source reads the answers"


def test_what_is_wrong_with_the_connector_is_named_first() -> None:
    b = speaking()
    shut = Connector().eval()
    with torch.no_grad():
        shut.gate.zero_()
    assert first(replace(b, connector=shut)) == "gates that are shut"
    whole = b.connector
    assert first(replace(b, connector=lambda x: whole(x).detach(), module=whole)) == "no gradient to the connector"
    blank = nn.Linear(WIDTH, TOKENS * WIDTH).eval()
    with torch.no_grad():
        blank.weight.zero_()
    found = checkup(replace(b, connector=lambda x: blank(x).unflatten(1, (TOKENS, WIDTH)), module=None))
    assert found.headline == "tokens that do not follow the input"
    assert found.faults[-1].name == "input that is not used"


def test_what_is_to_be_said_is_faint_where_the_inputs_vary_in_something_else() -> None:
    b = speaking()
    told = torch.cat([b.labels, torch.full_like(b.labels, -1)], 1)  # nothing is to be passed on from the second place
    places = torch.stack([b.inputs, b.inputs], 1)
    deaf = nn.Linear(WIDTH, TOKENS * WIDTH).eval()
    with torch.no_grad():
        deaf.weight.zero_()
    hears = replace(b, connector=lambda x: b.connector(x[:, 0]), inputs=places, told=told)
    does_not = replace(hears, connector=lambda x: deaf(x[:, 0]).unflatten(1, (TOKENS, WIDTH)))
    drowned = places + 10 * torch.randn(SAMPLES, 1, 1) * torch.ones(WIDTH)
    assert "what is to be said is faint" not in [fault.name for fault in checkup(does_not).faults]
    found = checkup(replace(does_not, inputs=drowned))
    assert found.headline == "what is to be said is faint", str(found)
    # A bridge that hears it all the same is none the worse for it.
    centred = replace(hears, connector=lambda x: b.connector(x[:, 0] - x.mean((1, 2), keepdim=True)[:, 0]))
    assert "what is to be said is faint" not in str(checkup(replace(centred, inputs=drowned)))
    with pytest.raises(ValueError, match=r"a label for each sample and place"):
        checkup(replace(b, told=told))


def test_a_module_that_drops_its_input_in_evaluation_is_found_and_left_as_it_was() -> None:
    class InTraining(Connector):
        def forward(self, inputs: Tensor) -> Tensor:
            found = super().forward(inputs)
            return found if self.training else found[:1].expand_as(found)

    own = InTraining()
    own.norm.eval()
    before = {name: buffer.clone() for name, buffer in own.named_buffers()}
    state = torch.get_rng_state()
    assert first(replace(speaking(), connector=own)) == "another model in evaluation"
    assert own.training
    assert not own.norm.training
    assert all(torch.equal(before[name], buffer) for name, buffer in own.named_buffers())
    assert all(p.grad is None for p in own.parameters())
    torch.manual_seed(0)  # `speaking` draws; the check-up itself must not
    bridge = replace(speaking(), connector=own)
    state = torch.get_rng_state()
    checkup(bridge)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_gradient_through_reentrant_checkpoints_is_measured_and_leaves_stored_ones_alone() -> None:
    class Checkpointed(Connector):
        def forward(self, inputs: Tensor) -> Tensor:
            found = super().forward(inputs)
            return checkpoint(torch.clone, found, use_reentrant=True) if self.training else found

    connector = Checkpointed().eval()
    assert not checkup(replace(speaking(), connector=connector)).faults
    assert all(p.grad is None for p in connector.parameters())


def test_a_scale_counts_only_where_the_host_would_rather_have_its_own() -> None:
    """Only the loss tells whether a scale harms: a host that norms what it reads does not care how loud it is."""
    b = speaking()
    whole = b.connector
    loud = replace(b, connector=lambda x: 1000 * whole(x), module=whole)
    assert not checkup(loud).faults
    faint = replace(loud, loss=lambda tokens, rows: b.loss(tokens, rows) + tokens.square().mean().sqrt().log().abs())
    assert first(faint) == "scale far from the host's"


def test_evidence_of_other_instruments_is_held_against_its_lines() -> None:
    b = speaking()
    sound = replace(
        b,
        leak=0.0,
        padding=PaddingShift("left", 1e-5, 0.0, 20, 32),
        generations=Degeneration(0.0, 0.0, 0.03, 32),
        penalty=AnchorReach(1.0, 0.3, (0.1, 0.1)),
        said=[str(i) for i in range(8)],
        wanted=[str(i) for i in range(8)],
    )
    assert not checkup(sound).faults
    for broken, name in (
        ({"padding": PaddingShift("right", 3.0, 0.4, 20, 32)}, "padding that changes the answers"),
        ({"generations": Degeneration(0.3, 0.0, 0.6, 32)}, "generations that do not end"),
        ({"generations": Degeneration(0.0, 0.5, 0.0, 32)}, "generations that do not end"),
        ({"penalty": AnchorReach(1.0, 0.0, (0.1, 0.0))}, "penalty that cannot see the answers"),
        ({"said": ["the same"] * 8}, "one sentence for all inputs"),
    ):
        assert [fault.name for fault in checkup(replace(sound, **broken)).faults] == [name]
    with pytest.raises(ValueError, match="3 outputs against 8 references"):
        checkup(replace(sound, said=["a"] * 3))


def test_a_loss_log_tells_what_does_not_move_and_what_diverges() -> None:
    noise = torch.randn(80, generator=torch.Generator().manual_seed(0)) * 0.05
    falls, flat, rises = (torch.linspace(3, end, 80) + noise for end in (1, 3, 6))
    b = speaking()
    assert not checkup(replace(b, losses=falls.tolist())).faults
    assert first(replace(b, losses=flat.tolist())) == "training that moves nothing"
    assert first(replace(b, losses=rises.tolist())) == "loss that diverged"
    assert trend(rises.tolist())[0] == pytest.approx(2.3, abs=0.1)


def test_contrastive_faults() -> None:
    b = meeting()
    embed = b.embed
    torch.manual_seed(1)
    fresh = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, WIDTH)).eval()
    for broken, name in (
        ({"image": b.image[:1].expand_as(b.image)}, "constant image inputs"),
        ({"text": b.text[:1].expand_as(b.text)}, "constant text inputs"),
        ({"text": b.text.roll(1, 0)}, "pairs that do not belong together"),
        ({"embed": lambda i, t: [3 * x for x in embed(i, t)]}, "embeddings not of unit length"),
        ({"scale": 0.01}, "temperature that hides the pairs"),
        ({"scale": 2e4}, "temperature that hides the pairs"),
        ({"embed": lambda i, t: [x.detach() for x in embed(i, t)], "module": embed}, "no gradient to the connector"),
        ({"embed": lambda i, t: (embed(i, t)[0], normalize(fresh(t), dim=-1))}, "held-out pairs at chance"),
        ({"embed": lambda i, t: (normalize(i.mean(1) * 0 + 1, dim=-1), t)}, "image embeddings all alike"),
        ({"embed": lambda i, t: (embed(i, t)[0] / 0, t)}, "values that are not finite"),
    ):
        assert first(replace(b, **broken)) == name, name


def test_chance_is_beaten_only_by_what_chance_hardly_reaches() -> None:
    assert not beats_chance(100 * 10 / 256, 10, 256)
    assert beats_chance(15.0, 10, 256)
    assert not beats_chance(100.0, 10, 10)  # ten of ten are found by whatever order


def test_a_report_as_text_markdown_json_and_page() -> None:
    report = Report((Reading("a <b>", "1|2", ">= 3", "constant inputs"), Reading("c", "4", "< 5")))
    assert str(report).splitlines()[0] == "constant inputs"
    assert "<--" in str(report)
    assert report._repr_markdown_().count("\n| ") == 3
    told = json.loads(report.json())
    assert told["headline"] == told["faults"][0]["name"] == "constant inputs"
    assert len(told["readings"]) == 2
    assert "a &lt;b&gt;" in report.html()
    assert Report((Reading("c", "4", "< 5"),)).headline == "nothing raised"
    with pytest.raises(ValueError, match="unknown; choose from"):
        Reading("a", "b", "c", "no such fault")


def test_every_fault_has_a_topic_that_a_chapter_explains() -> None:
    for fault in FAULTS.values():
        assert link_to(fault.topic).endswith(f"({TOPICS[fault.topic]}.ipynb)"), fault
        assert fault.mend


def test_sides_that_do_not_fit_are_refused() -> None:
    b = speaking()
    with pytest.raises(ValueError, match="samples: 3"):
        checkup(replace(b, inputs=b.inputs[:3], labels=None))
    with pytest.raises(ValueError, match="samples: 120, 119"):
        checkup(replace(b, labels=b.labels[1:]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": lambda tokens, rows: tokens.sum(1)}, r"the loss has the shape \(15, 16\): return its mean"),
        ({"connector": lambda x: (x, x)}, "the connector returns a tuple: give tokens as one tensor"),
        ({"connector": lambda x: x[:, 0]}, r"the connector returns the shape \(15,\)"),
    ],
)
def test_parts_of_another_form_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checkup(replace(speaking(), module=None, **change))


def test_a_loss_of_one_element_and_whole_numbers_as_inputs_will_do() -> None:
    b = speaking()
    assert not checkup(replace(b, loss=lambda tokens, rows: b.loss(tokens, rows)[None])).faults
    ids, table = torch.arange(SAMPLES)[:, None] % WORDS, b.embeddings
    found = checkup(replace(b, connector=lambda x: table[x], inputs=ids))
    assert not found.faults, str(found)
    assert "deviation" not in str(found)


def test_embed_has_to_give_both_sides() -> None:
    with pytest.raises(ValueError, match="embed returns a dict: give embeddings of images and of texts"):
        checkup(replace(meeting(), embed=lambda i, t: {}))


def test_three_lines_report_on_a_model_of_another_project_within_thirty_seconds() -> None:
    made = runpy.run_path(str(ROOT / "book" / "examples" / "my_bridge.py"))
    connector, features, loss = made["Connector"](), made["features"], made["loss"]
    started = time.monotonic()
    report = checkup(Generative(connector, features, loss))
    assert time.monotonic() - started < 30
    assert report.headline in ("tokens that do not follow the input", "input that is not used")


def command(*given: object) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "bridges", "checkup", *map(str, given)]
    return subprocess.run(run, capture_output=True, text=True)


def test_the_command_checks_a_file_and_writes_both_forms(tmp_path: Path) -> None:
    page, data = tmp_path / "report.html", tmp_path / "report.json"
    done = command(ROOT / "book" / "examples" / "my_bridge.py", "--html", page, "--json", data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == json.loads(data.read_text())["headline"]
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bridge = 3\n", "makes no bridge: end it with bridge = Generative"),
        ("x = 1\nraise KeyError('x')\n", r"mine.py, line 2: KeyError: 'x'"),
        ("", "makes no bridge"),
        ("import sys\nsys.exit(0)\n", "mine.py, line 2: SystemExit: 0"),
    ],
)
def test_a_file_that_makes_no_bridge_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_bridge(tmp_path / "mine.py")
    with pytest.raises(ValueError, match="is no file"):
        read_bridge(tmp_path / "none.py")
    with pytest.raises(ValueError, match="give it with --loss"):
        read_bridge(tmp_path / "log.csv")


def test_the_command_says_what_is_no_tensor(tmp_path: Path) -> None:
    example = (ROOT / "book" / "examples" / "my_bridge.py").read_text()
    (tmp_path / "mine.py").write_text(example.replace("loss, labels,", "loss, labels.tolist(),"))
    done = command(tmp_path / "mine.py")
    assert done.returncode == 1
    assert "labels is a list: give a tensor, one row for each sample" in done.stderr


def test_the_command_says_what_it_needs() -> None:
    done = command()
    assert done.returncode == 1
    assert re.fullmatch(r"error: give either a Python file .*\n", done.stderr)


def test_a_file_may_make_a_model_and_a_batch_and_the_chunk_is_given(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = command(ROOT / "book" / "examples" / "my_llava.py", "--html", page, "--chunk", 32)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "input that is not used"
    assert not done.stderr  # no bar where nobody sees it
    done = command(ROOT / "book" / "examples" / "my_llava.py", "--chunk", 2)
    assert done.returncode == 1
    assert done.stderr == "error: --chunk 2: samples of one call trade their inputs, so give 3 or more\n"
    with pytest.raises(ValueError, match="2 samples in a call cannot trade their inputs: give a chunk of 3"):
        checkup(speaking(), chunk=2)
    assert not checkup(replace(speaking(), inputs=speaking().inputs[:7], labels=None), chunk=3).faults


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("", r"makes a model and no batch: give batch = \{\.\.\.\}, what the model is called with, by name"),
        ("batch = [1]\n", r"makes a model whose batch is a list: give batch"),
        ("batch = {'x': torch.ones(8, 4)}\n", r"ValueError: where Linear keeps its connector is not known: name"),
        ("batch, connector = {'x': torch.ones(8, 4)}, model\n", r"connector is a Linear: give its path in the model"),
    ],
)
def test_a_file_whose_model_cannot_be_called_is_refused(end: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"import torch\nmodel = torch.nn.Linear(4, 4)\n{end}")
    with pytest.raises(ValueError, match=said):
        read_bridge(tmp_path / "mine.py")


def test_a_whole_model_in_the_place_of_its_connector_is_told_how_to_be_called() -> None:
    class LlavaForConditionalGeneration(nn.Linear):
        """Named as the model that users hand over."""

    class Two(nn.Linear):
        get_image_features = get_text_features = logit_scale = None

    whole = LlavaForConditionalGeneration(WIDTH, WIDTH)
    said = r"whole model, not its connector: call checkup\(model, batch\), where batch is what the model is called with"
    with pytest.raises(ValueError, match=f"a LlavaForConditionalGeneration is a {said}"):
        checkup(replace(speaking(), connector=whole))
    with pytest.raises(ValueError, match=f"a Two is a {said}"):
        checkup(replace(meeting(), embed=Two(WIDTH, WIDTH)))


def test_a_check_up_that_lasts_shows_its_readings_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridges.instruments.checkup.SOON", 0)
    checkup(speaking(), progress=True)
    assert not capsys.readouterr().err  # no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    checkup(speaking(), progress=True)
    assert "check-up: " in capsys.readouterr().err
    checkup(speaking())
    assert not capsys.readouterr().err


def test_every_fault_says_why_and_at_what_cost_and_brings_about_only_what_stands_after_it() -> None:
    assert set(ADVICE) == set(FAULTS)
    order = list(FAULTS)
    for name, known in ADVICE.items():
        assert known.why, name
        assert known.cost in COSTS
        assert FAULTS[name].why == known.why
        for brought in known.brings:
            assert order.index(brought) > order.index(name), f"{brought} stands before {name}, its cause"


def raising(*names: str) -> Report:
    return Report(tuple(Reading(f"reading {i}", "found", "line", name) for i, name in enumerate(names)))


def test_faults_of_one_cause_are_told_as_one() -> None:
    report = raising(
        "input that is not used", "connector is not the trained one", "held-out loss far above the log's end"
    )
    assert report.headline == "connector is not the trained one"
    assert len(report.faults) == 3
    assert report.causes == {
        "connector is not the trained one": ("input that is not used", "held-out loss far above the log's end")
    }
    text = str(report)
    assert (
        "1. connector is not the trained one (see collapse)\n   seen: reading 1: found, against line\n   why: " in text
    )
    assert "try (a line of code): load its weights" in text
    assert "may follow from it: input that is not used, held-out loss far above the log's end" in text
    assert "2. " not in text
    assert json.loads(report.json())["causes"] == {name: list(brought) for name, brought in report.causes.items()}


def test_a_consequence_of_a_consequence_stands_under_the_first_cause_and_others_by_what_they_cost() -> None:
    report = raising("tokens that do not follow the input", "gates that are shut", "one sentence for all inputs")
    assert report.causes == {
        "gates that are shut": ("tokens that do not follow the input", "one sentence for all inputs")
    }
    report = raising(
        "loss that diverged", "padding that changes the answers", "padding is supervised", "loss below zero"
    )
    assert list(report.causes) == [
        "padding is supervised",  # the headline, then a look before a line of code before a training
        "loss below zero",
        "padding that changes the answers",
        "loss that diverged",
    ]


def test_the_page_has_plots_that_need_no_library_and_are_told_in_words() -> None:
    log = [3.4 - i / 100 for i in range(100)]
    report = checkup(speaking(), log=log)
    assert [profile.title.partition(" (")[0] for profile in report.profiles] == [
        "The loss log",
        "Scale by token",
        "Loss with another sample's token in one place",
        "Gradient by parameter",
    ]
    loss, scale, gap, gradient = report.profiles
    assert list(loss.lines) == [f"no word preferred, ln({WORDS})", "held-out loss"]
    assert loss.values == pytest.approx(log)
    assert scale.at == gap.at == (1, 2, 3, 4)
    assert scale.values == pytest.approx([1.01] * 4, abs=0.01)
    assert gradient.rows == ("gate", "map.weight")
    page = report.html()
    assert page.count("<svg") == page.count("aria-label=") == 4
    assert "3.4 at first, 2.41 at last; lowest 2.41 (value of the log 100)" in page
    for named in (
        "loss (nats)",
        "value of the log",
        "RMS over the embeddings",
        "rise of the loss (nats)",
        "map.weight",
    ):
        assert named in page
    assert "http" not in page
    assert "<script" not in page
    assert [curve["title"] for curve in json.loads(report.json())["profiles"]] == [p.title for p in report.profiles]
    assert not checkup(speaking(), plots=False).profiles


def test_plots_of_two_sides_of_what_is_broken_and_of_much() -> None:
    report = checkup(replace(meeting(), losses=[4.2] * 1000, batch=64))
    assert [profile.title for profile in report.profiles] == ["The loss log", "Gradient by parameter"]
    assert list(report.profiles[0].lines) == ["chance, ln(64)"]
    assert len(report.profiles[0].values) <= 300
    broken = speaking().inputs.clone()
    broken[3, 3] = torch.nan
    report = checkup(replace(speaking(), inputs=broken, losses=[3.0, torch.nan, 2.0, 1.0]))
    assert [profile.title for profile in report.profiles] == ["The loss log"]
    assert json.loads(report.json())["profiles"][0]["values"][1] is None
    assert "lowest 1 (value of the log 4)" in report.html()
    assert "M" in report.profiles[0].svg().partition('class="values" d="')[2].partition('"')[0][1:]  # it is cut there

    deep = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(10)))
    b = speaking()
    report = checkup(replace(b, connector=lambda x: deep(x)[:, None].expand(-1, TOKENS, -1), module=deep))
    assert report.profiles[-1].rows == tuple(f"{i}.{j}" for i in range(10) for j in range(2))


def test_a_profile_shows_what_there_is() -> None:
    nothing = Profile("None", "x", "y", (math.nan,), (1.0,))
    assert nothing.svg() == ""
    assert nothing.told == "None: no finite value."
    assert "<figure>" not in Report((Reading("a", "b", "c"),), profiles=(nothing,)).html()
    rows = Profile(
        "Rows", "", "norm", (0.0, 2.0, math.inf), rows=("a<b", "a very long name of a module's parameter", "c")
    )
    drawn = rows.svg()
    assert ">none<" in drawn
    assert ">not finite<" in drawn
    assert "a&lt;b" in drawn
    assert "…" in drawn
    with pytest.raises(ValueError, match="Rows: 1 values for 2 places"):
        Profile("Rows", "", "norm", (1.0,), rows=("a", "b"))
