"""The third thread's translator, its hosts, and bridges trained side by side as `fit` would train each alone."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from bridges.__main__ import main
from bridges.benches import answering, bridge_runs, exams, pretrain
from bridges.benches.bridge_runs import Batch, BridgeRecipe, train_bridges
from bridges.benches.exams import Bench, Exam, Pair, bridge_logits, examine
from bridges.benches.pretrain import SOLVERS, small_solver
from bridges.connectors.scale import ScaleMatch, Whitening, embedding_rms, rms
from bridges.connectors.translator import LOG, GatedTranslator, TranslatorSettings
from bridges.hosts import causal
from bridges.hosts.causal import answer_loss, generate, hidden_states, positions, read_logits, until_end
from bridges.tasks import word_problems
from bridges.training.ensemble import fit_ensemble
from bridges.training.fit import GATE_GROUP, FitSettings, Group, fit
from bridges.training.losses import kl_aligned, kl_as_written
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

SW, TW = word_problems.tokenizer("source"), word_problems.tokenizer("target")
torch.manual_seed(0)
PAIR = Pair(
    causal.build("mistral", "quick", SW).eval().requires_grad_(False),
    SW,
    causal.build("llama", "quick", TW).eval().requires_grad_(False),
    TW,
)
PROBLEMS = word_problems.problems(24, seed=5)
EXAM = examine(PROBLEMS, PAIR)
SETTINGS = TranslatorSettings(bottleneck=16, tokens=3, depth=2, heads=2, gate=0.3)
FIT = FitSettings(4, lr=1e-2, batch=6, warmup=1, clip=0.5, groups=(GATE_GROUP,))
RECIPE = BridgeRecipe(FIT, SETTINGS)


def train_arms(arms, seeds, benches, **options):
    """Every arm with every seed, on one of the benches; what was trained, by name and seed."""
    runs = [(name, seed) for name in arms for seed in seeds]
    made = train_bridges([(arms[name], seed, benches[seed % len(benches)]) for name, seed in runs], **options)
    return dict(zip(runs, made, strict=True))


def shifted(labels: Tensor, step: int) -> Tensor:
    """Each position is asked for the token after the next."""
    return pad(labels[:, 1:], (0, 1), value=-100)


def staged(labels: Tensor, step: int, over: int = 3) -> Tensor:
    """The answer's first tokens, more of them with every step."""
    asked = 2 + step * labels.shape[1] // over
    return labels if step >= over else labels.masked_fill(torch.arange(labels.shape[1]) >= asked, -100)


def written(batch: Batch) -> Tensor:
    """The log's penalty."""
    return kl_as_written(batch.logits, batch.bench.prompt_logits[batch.rows, :2], 2)


def aligned(batch: Batch, start: int = 0) -> Tensor:
    """The penalty over the answer's tokens, from a step on."""
    answers = batch.bench.taught.labels[batch.rows]
    told = batch.logits[:, -answers.shape[1] - 1 : -1]
    kl = kl_aligned(told, batch.bench.answer_logits[batch.rows], answers != -100, 20)
    return kl if batch.step >= start else 0 * kl


def halfway(step: int) -> float:
    """Gates that a schedule opens."""
    return step / 4


# The translator


@pytest.mark.parametrize(
    ("name", "millions"), [("conservative", 142.78), ("high capacity", 188.98), ("efficient", 61.44)]
)
def test_the_logs_translators_have_its_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        parts = dict(GatedTranslator(4096, LOG[name], 4096).named_parameters())
    assert round(sum(p.numel() for p in parts.values()) / 1e6, 2) == millions


def test_the_six_layer_translator_falls_into_the_logs_optimiser_groups() -> None:
    with torch.device("meta"):
        parts = dict(GatedTranslator(4096, LOG["conservative"], 4096).named_parameters())
    gates = [name for name in parts if name.startswith("gates.")]
    vectors = [name for name, p in parts.items() if p.dim() == 1 and name not in gates]
    assert (len(parts) - len(gates) - len(vectors), len(vectors), len(gates)) == (50, 87, 6)


def test_a_shut_gate_lets_nothing_through_and_gives_nothing_behind_it_a_gradient() -> None:
    torch.manual_seed(1)
    translator = GatedTranslator(10, replace(SETTINGS, gate=0.0), 8)
    states, mask = torch.randn(2, 5, 10, requires_grad=True), torch.ones(2, 5, dtype=torch.long)
    out = translator(states, mask)
    torch.testing.assert_close(out[0], out[1])
    out.square().sum().backward()
    assert states.grad is not None
    assert states.grad.abs().max() == 0
    for name, p in translator.named_parameters():
        assert p.grad is not None
        assert (p.grad.abs().max() == 0) == (".read." in name or ".norms.0." in name or name.startswith("norm.")), name


def test_what_is_masked_is_not_read_and_a_schedule_stands_in_for_the_gates() -> None:
    torch.manual_seed(1)
    translator = GatedTranslator(10, SETTINGS, 8)
    states, mask = torch.randn(2, 5, 10), torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    other = states.clone()
    other[:, 0] = torch.randn(2, 10)
    same, moved = translator(states, mask), translator(other, mask)
    torch.testing.assert_close(same[0], moved[0])
    assert (same[1] - moved[1]).abs().max() > 1e-3
    torch.testing.assert_close(translator(states, mask, 0.0)[0], translator(other, mask, 0.0)[1])
    opened = torch.tensor(0.3).tanh().item()
    torch.testing.assert_close(translator(states, mask, opened), same)


def test_a_bottleneck_that_cannot_be_cut_into_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be cut into 5 heads"):
        GatedTranslator(10, replace(SETTINGS, heads=5), 8)


# Its scale


def test_scale_match_is_the_logs_recipe_without_the_division_that_changes_nothing() -> None:
    tokens = 7 * torch.randn(2, 3, 16) + 1
    normed = layer_norm(tokens, (16,))
    as_logged = normed / rms(normed)[..., None].clamp_min(1e-8) * 0.0105
    torch.testing.assert_close(ScaleMatch(0.0105)(tokens), as_logged, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(ScaleMatch(0.0105, norm=False)(tokens), tokens)
    with pytest.raises(ValueError, match="leaves nothing"):
        ScaleMatch(0.0)


def test_whitening_makes_all_directions_equally_loud_and_can_be_undone() -> None:
    torch.manual_seed(0)
    turned = torch.linalg.qr(torch.randn(8, 8)).Q
    states = torch.randn(4000, 8) * torch.linspace(1, 4, 8) @ turned + 3
    whitening = Whitening(8)
    torch.testing.assert_close(whitening(states), states)
    white = whitening.fit(states)(states)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(8), atol=0.05, rtol=0)
    torch.testing.assert_close(white @ whitening.matrix.inverse() + whitening.mean, states, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(whitening.matrix, whitening.matrix.T)
    again = Whitening(8)
    again.load_state_dict(whitening.state_dict())
    assert torch.equal(again(states), white)


def test_whitening_by_halves_lies_between() -> None:
    torch.manual_seed(0)
    states = torch.randn(2000, 2) * torch.tensor([1.0, 100.0])
    spread = [Whitening(2).fit(states, x)(states).std(0).log() for x in (0.0, 0.5, 1.0)]
    ratios = [float(loud - faint) for faint, loud in spread]
    assert ratios[1] == pytest.approx((ratios[0] + ratios[2]) / 2, abs=0.01)
    torch.testing.assert_close(Whitening(2).fit(states, 0.0).matrix, torch.eye(2))
    for given, strength in ((states[:1], 1.0), (states, 1.5)):
        with pytest.raises(ValueError, match="give two or more, and a strength of 0 to 1"):
            Whitening(2).fit(given, strength)
    with pytest.raises(ValueError, match="do not vary"):
        Whitening(2).fit(torch.ones(5, 2))


def test_a_whitened_exam_has_one_more_layer_by_the_statistics_of_what_is_taught() -> None:
    taught, asked = EXAM.first(16), examine(PROBLEMS[16:], PAIR)
    asked = replace(asked, states=asked.states + 1)
    made = exams.whitened(asked, taught, layer=1)
    assert torch.equal(made.states[:-1], asked.states)
    own = Whitening(made.states.shape[-1]).fit(taught.states[1][taught.mask.bool()])
    assert torch.equal(made.states[-1], own(asked.states[1]))


def test_embedding_rms_is_the_mean_over_words() -> None:
    weight = PAIR.target.get_input_embeddings().weight
    assert embedding_rms(PAIR.target) == pytest.approx(weight.pow(2).mean(dim=1).sqrt().mean().item())


# Hosts


def test_read_logits_is_the_host_reading_by_itself() -> None:
    ids, mask = EXAM.visible
    plain = PAIR.target(input_ids=ids, attention_mask=mask, position_ids=positions(mask)).logits
    found = read_logits(PAIR.target, None, ids, mask)
    there = mask.bool()
    assert not there.all(), "the problems must differ in length"
    torch.testing.assert_close(found[there], plain[there], rtol=1e-4, atol=1e-5)


def test_soft_tokens_that_are_embeddings_are_words() -> None:
    ids, mask = EXAM.hidden
    words = EXAM.labels[:, :2]
    soft = PAIR.target.get_input_embeddings()(words)
    spelt = read_logits(PAIR.target, None, torch.cat([words, ids], 1), torch.cat([torch.ones_like(words), mask], 1))
    torch.testing.assert_close(read_logits(PAIR.target, soft, ids, mask), spelt)
    torch.testing.assert_close(
        generate(PAIR.target, soft, ids, mask, 4),
        PAIR.target.generate(
            input_ids=torch.cat([words, ids], 1),
            attention_mask=torch.ones(len(ids), 2 + ids.shape[1], dtype=torch.long),
            max_new_tokens=4,
            do_sample=False,
        )[:, 2 + ids.shape[1] :],
    )


def test_hidden_states_are_the_hosts_own_whatever_the_batch() -> None:
    ids, mask = word_problems.encode([word_problems.prompt(p.question, SW) for p in PROBLEMS], SW)
    whole, parts = hidden_states(PAIR.source, ids, mask), hidden_states(PAIR.source, ids, mask, batch=7)
    there = mask.bool()
    assert len(whole) == PAIR.source.config.num_hidden_layers + 1
    torch.testing.assert_close(whole[:, there], parts[:, there], rtol=1e-4, atol=1e-5)
    alone = hidden_states(PAIR.source, ids[3:4, mask[3] == 1], mask[3:4, mask[3] == 1])
    torch.testing.assert_close(whole[:, 3, mask[3] == 1], alone[:, 0], rtol=1e-4, atol=1e-5)


def test_answer_loss_is_the_hosts_own_loss() -> None:
    ids, mask = EXAM.visible
    labels = EXAM.labels
    both = torch.cat([ids, labels.clamp_min(0)], 1)
    there = torch.cat([mask, (labels != -100).long()], 1)
    asked = torch.cat([torch.full_like(ids, -100), labels], 1)
    theirs = PAIR.target(input_ids=both, attention_mask=there, position_ids=positions(there), labels=asked).loss
    ours = answer_loss(bridge_logits(PAIR.target, None, EXAM, torch.arange(len(ids)), True), labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_generations_are_cut_behind_their_end() -> None:
    assert until_end(torch.tensor([[5, 6, 1, 0, 0], [5, 5, 5, 5, 5]]), end=1) == [[5, 6, 1], [5, 5, 5, 5, 5]]


@pytest.mark.parametrize(
    ("family", "size", "told"), [("gpt", "quick", "mistral, llama"), ("llama", "huge", "quick, full")]
)
def test_unknown_hosts_are_refused(family: str, size: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        causal.build(family, size, TW)


def test_a_saved_host_is_loaded_with_its_tokenizer_frozen_and_padded_on_the_left(tmp_path: Path) -> None:
    PAIR.target.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="tokenizer"):
        causal.load(str(tmp_path))
    TW.save_pretrained(tmp_path)
    model, words = causal.load(str(tmp_path))
    assert words.padding_side == "left"
    assert not any(p.requires_grad for p in model.parameters())
    ids, mask = EXAM.visible
    torch.testing.assert_close(read_logits(model, None, ids, mask), read_logits(PAIR.target, None, ids, mask))
    with pytest.raises(OSError, match="hub name"):
        causal.load(str(tmp_path / "nothing"))


# Penalties


def test_the_penalty_as_written_does_not_see_the_answers_and_the_aligned_one_does() -> None:
    torch.manual_seed(2)
    soft = torch.randn(24, 6, 64, requires_grad=True)
    rows = torch.arange(24)
    other = replace(EXAM, labels=EXAM.labels.roll(1, 0))
    baseline = read_logits(PAIR.target, None, *EXAM.visible)
    values = [kl_as_written(bridge_logits(PAIR.target, soft, e, rows, False), baseline, 4) for e in (EXAM, other)]
    torch.testing.assert_close(values[0], values[1])
    (gradient,) = torch.autograd.grad(values[0], soft)
    norms = gradient.norm(dim=-1).mean(0)
    assert (norms[:4] > 0).all()
    assert (norms[4:] == 0).all()
    length = EXAM.labels.shape[1]
    told = [bridge_logits(PAIR.target, soft, e, rows, False)[:, -length - 1 : -1] for e in (EXAM, other)]
    right = bridge_logits(PAIR.target, None, EXAM, rows, True)[:, -length - 1 : -1]
    aligned = [kl_aligned(x, right, EXAM.labels != -100, 20) for x in told]
    assert (aligned[0] - aligned[1]).abs() > 1e-4
    assert kl_aligned(right, right, EXAM.labels != -100, 20).abs() < 1e-6


def test_the_aligned_penalty_counts_its_first_positions_alone() -> None:
    ours, theirs, there = torch.randn(3, 5, 7), torch.randn(3, 5, 7), torch.ones(3, 5, dtype=torch.bool)
    there[0, 2:] = False
    by_hand = [
        (t.softmax(-1) * (t.log_softmax(-1) - o.log_softmax(-1))).sum()
        for i in range(3)
        for t, o, here in zip(theirs[i, :3], ours[i, :3], there[i, :3], strict=True)
        if here
    ]
    torch.testing.assert_close(kl_aligned(ours, theirs, there, 3), torch.stack(by_hand).mean())
    with pytest.raises(ValueError, match="9 positions"):
        kl_as_written(ours, theirs, 9)


# Training


def alone(recipe: BridgeRecipe, seed: int, exam: Exam = EXAM) -> list[float]:
    """The losses of one bridge trained by `fit`."""
    bridge = answering.untrained(recipe, seed, PAIR)

    def loss(rows: Tensor) -> Tensor:
        soft = bridge(exam.states[:, rows], exam.mask[rows])
        return answer_loss(bridge_logits(PAIR.target, soft, exam, rows, recipe.visible), exam.labels[rows])

    return fit(bridge, loss, len(exam.problems), recipe.fit, seed).losses


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"scale": None},
        {"scale": 10.0, "layer": 2},
        {"visible": True},
        {"fit": replace(FIT, groups=(Group("translator.gates.", rate=1.0),), schedule="linear")},
    ],
)
def test_bridges_side_by_side_learn_as_each_alone(changed: dict) -> None:
    arms = {"plain": RECIPE, "changed": replace(RECIPE, **changed)}
    bench = Bench(PAIR, EXAM, {})
    found = train_arms(arms, (3, 4), [bench])
    for (name, seed), trained in found.items():
        torch.testing.assert_close(trained.losses, alone(arms[name], seed), rtol=1e-4, atol=1e-5)


def test_bridges_of_several_benches_and_losses_share_a_graph_and_learn_as_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    hosts = [causal.build(f, "quick", w).eval().requires_grad_(False) for f, w in (("mistral", SW), ("llama", TW))]
    other = Pair(hosts[0], SW, hosts[1], TW)
    benches = [Bench(PAIR, EXAM, {"report": EXAM.first(5)}), Bench(other, examine(PROBLEMS, other).first(9), {})]
    arms = {
        "plain": RECIPE,
        "shifted": replace(RECIPE, labels=shifted),
        "anchored": replace(RECIPE, penalty=written),
        "aligned": replace(RECIPE, penalty=partial(aligned, start=2)),
        "staged": replace(RECIPE, labels=staged),
    }
    runs = [(recipe, 3, own) for recipe in arms.values() for own in benches]
    lone = [train_bridges([run], looks=(2,))[0] for run in runs]
    graphs = []
    monkeypatch.setattr(bridge_runs, "fit_ensemble", lambda *a, **k: graphs.append(len(a[0])) or fit_ensemble(*a, **k))
    together = train_bridges(runs, looks=(2,))
    assert graphs == [len(runs)]
    for one, same in zip(together, lone, strict=True):
        torch.testing.assert_close(one.losses, same.losses, rtol=1e-4, atol=1e-5)
        assert one.looks == same.looks
    assert len({round(one.losses[-1], 5) for one in together}) == len(runs)


def test_looks_are_what_the_bridge_says_then_and_training_goes_on_untouched() -> None:
    bench = Bench(PAIR, EXAM, {"report": EXAM.first(5)})
    looked = train_arms({"a": RECIPE}, (3, 4), [bench], looks=(2, 4))
    unlooked = train_arms({"a": RECIPE}, (3, 4), [bench])
    for key, trained in looked.items():
        assert trained.losses == unlooked[key].losses
        assert list(trained.looks) == [2, 4]
        own = bench.exams["report"]
        said = exams.answer(PAIR.target, TW, trained.bridge(own.states, own.mask), own, visible=False)
        assert said.ids == trained.looks[4]["report"].ids


def test_a_bridge_told_by_another_exam_is_the_same_bridge(tmp_path: Path) -> None:
    class Small(answering.Answering):
        def home(self, seed: int) -> Bench:
            asked = {"report": EXAM.first(5), "other": examine(PROBLEMS[5:], PAIR)}
            return Bench(PAIR, EXAM, {name: asked[name] for name in self.exams})

    read = {"read": lambda bridge, home: {"size": sum(p.abs().sum().item() for p in bridge.parameters())}}
    bench, recipe = Small(tmp_path), replace(RECIPE, visible=True)
    once, twice = (bench.train({"a": recipe}, (1003,), looks=(2,), other_exam=x, **read) for x in (False, True))
    first, other = (twice.course("a", seed) for seed in (1003, 2003))
    assert all(first[name].equals(course) for name, course in once.course("a", 1003).items())
    assert first.keys() == other.keys()
    assert first["size"].equals(other["size"])
    with torch.no_grad():
        states = twice.model("a", 1003)(*(getattr(examine(PROBLEMS[5:], PAIR), part) for part in ("states", "mask")))
    said = exams.answer(PAIR.target, TW, states, examine(PROBLEMS[5:], PAIR), visible=True)
    assert other["report"].iloc[-1] == said.accuracy


def test_dropout_is_on_in_training_and_off_at_looks() -> None:
    dropped = replace(RECIPE, translator=replace(SETTINGS, dropout=0.5))
    bench = Bench(PAIR, EXAM, {"report": EXAM})
    (trained,) = train_arms({"a": dropped}, (3,), [bench], looks=(4,)).values()
    assert trained.losses != alone(RECIPE, 3)
    said = exams.answer(PAIR.target, TW, trained.bridge(EXAM.states, EXAM.mask), EXAM, visible=False)
    assert said.ids == trained.looks[4]["report"].ids


@pytest.fixture
def steady_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters without dropout, which draws other masks in an ensemble than alone."""
    monkeypatch.setattr(bridge_runs, "adapted", partial(causal.adapted, dropout=0.0))


@pytest.mark.usefixtures("steady_adapters")
def test_adapted_targets_side_by_side_learn_as_each_alone_and_leave_the_pair_alone() -> None:
    recipe, before = replace(RECIPE, lora=4, visible=True), PAIR.target.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    exam = EXAM.first(5)
    found = train_arms({"a": recipe}, (3, 4), [Bench(PAIR, EXAM, {"report": exam})], looks=(4,))
    for (_, seed), trained in found.items():
        bridge = answering.untrained(recipe, seed, PAIR)
        target = causal.adapted(PAIR.target, 4, dropout=0.0)
        both = nn.ModuleDict({"bridge": bridge, "target": target})

        def loss(rows: Tensor, bridge: nn.Module = bridge, target: PreTrainedModel = target) -> Tensor:
            soft = bridge(EXAM.states[:, rows], EXAM.mask[rows])
            return answer_loss(bridge_logits(target, soft, EXAM, rows, True), EXAM.labels[rows])

        settings = replace(recipe.fit, groups=(replace(GATE_GROUP, prefix="bridge.translator.gates."),))
        losses = fit(both, loss, len(PROBLEMS), settings, seed).losses
        torch.testing.assert_close(trained.losses, losses, rtol=1e-4, atol=1e-5)
        assert trained.target is not None
        soft = trained.bridge(exam.states, exam.mask)
        torch.testing.assert_close(soft, bridge(exam.states, exam.mask), rtol=1e-3, atol=1e-4)
        assert exams.answer(trained.target, TW, soft, exam, True).ids == trained.looks[4]["report"].ids
    learnt = [next(p for n, p in t.target.named_parameters() if "lora_B" in n) for t in found.values() if t.target]
    assert all(x.abs().max() > 0 for x in learnt)
    assert not torch.equal(*learnt)
    assert all(torch.equal(value, before[name]) for name, value in PAIR.target.state_dict().items())


def test_an_adapter_is_the_logs_and_changes_nothing_before_it_is_trained() -> None:
    target = causal.adapted(PAIR.target, 4).eval()
    torch.testing.assert_close(read_logits(target, None, *EXAM.visible), read_logits(PAIR.target, None, *EXAM.visible))
    trained = {name: p.numel() for name, p in target.named_parameters() if p.requires_grad}
    width, kept = PAIR.target.config.hidden_size, PAIR.target.config.num_key_value_heads * 16
    assert len(trained) == 4
    assert all("layers.0.self_attn" in name and ("q_proj" in name or "v_proj" in name) for name in trained)
    assert sum(trained.values()) == 4 * (2 * width + width + kept)
    settings = target.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (4, 8, 0.1)
    with pytest.raises(ValueError, match="q_proj"):
        causal.adapted(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)))


def test_staged_and_shifted_labels_and_penalties_change_what_is_learnt() -> None:
    bench = Bench(PAIR, EXAM, {})
    first = {
        name: train_arms({name: replace(RECIPE, **changed)}, (3,), [bench])[name, 3].losses[0]
        for name, changed in {
            "plain": {},
            "staged": {"labels": partial(staged, over=50)},
            "shifted": {"labels": shifted},
            "anchored": {"penalty": written},
            "aligned": {"penalty": aligned},
            "late": {"penalty": partial(aligned, start=4)},
        }.items()
    }
    assert first["late"] == first["plain"]
    assert len({round(x, 6) for x in first.values()}) == len(first) - 1
    assert first["anchored"] > first["plain"] < first["aligned"]


def test_gates_that_a_schedule_opens_are_not_trained_and_open_at_looks_as_it_had_them() -> None:
    bench = Bench(PAIR, EXAM, {"report": EXAM.first(5)})
    found = train_arms({"own": RECIPE, "by schedule": replace(RECIPE, opened=halfway)}, (3,), [bench], looks=(2,))
    gates = {name: torch.stack(list(one.bridge.translator.gates)).flatten() for (name, _), one in found.items()}
    assert (gates["by schedule"] == SETTINGS.gate).all()
    assert (gates["own"] != SETTINGS.gate).all()
    assert found["own", 3].losses[0] != found["by schedule", 3].losses[0]


def test_a_plateau_halves_the_rate_of_the_runs_that_wait() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.a * x

    seen: list[list[float]] = []
    plateau = FitSettings(8, lr=1e-2, batch=2, warmup=0, schedule="plateau", weight_decay=0.0)

    def loss(model, rows: Tensor, step: int) -> Tensor:
        return -model(torch.ones(())).sum()

    def look(step: int, ensemble) -> list[float]:
        seen.append(ensemble.parameters["a"][:, 0].tolist())
        return [-step, 1.0]  # the first improves at every look, the second never

    fit_ensemble([Slope(), Slope()], loss, 2, [plateau] * 2, [0, 0], look=look)
    moves = torch.tensor(seen).diff(dim=0)
    torch.testing.assert_close(moves[:, 0], torch.full((7,), 0.01), rtol=1e-3, atol=0)
    assert moves[-1, 1] < 0.3 * moves[0, 1]
    with pytest.raises(ValueError, match="plateau"):
        fit_ensemble([Slope()], loss, 2, [plateau], [0])


def test_gates_can_be_spared_weight_decay() -> None:
    settings = FitSettings(1, weight_decay=0.5, groups=(Group("a.", weight_decay=0.0), Group("b.")))
    assert [settings.decay(name) for name in ("a.x", "b.x", "c.x")] == [0.0, 0.5, 0.5]
    line = FitSettings(11, warmup=1, schedule="linear")
    assert [line.rate(step) for step in (0, 1, 6, 11)] == [1.0, 1.0, 0.5, 0.0]
    assert [replace(line, steps=6, horizon=11).rate(step) for step in (0, 1, 6)] == [1.0, 1.0, 0.5]


def test_four_lines_shuffle_the_source_and_nothing_else() -> None:
    bench = Bench(PAIR, EXAM, {"report": EXAM})
    bridge = answering.untrained(RECIPE, 3, PAIR)
    lines = bench.four_lines(bridge, "report", visible=False)
    assert list(lines) == ["target alone", "source alone", "bridged", "shuffled source"]
    turned = replace(EXAM, states=EXAM.states.roll(1, 1), mask=EXAM.mask.roll(1, 0))
    assert (
        lines["shuffled source"].ids
        == exams.answer(PAIR.target, TW, bridge(turned.states, turned.mask), EXAM, False).ids
    )
    assert lines["bridged"].ids == exams.answer(PAIR.target, TW, bridge(EXAM.states, EXAM.mask), EXAM, False).ids


def test_a_source_that_reads_solutions_has_other_states() -> None:
    told = examine(PROBLEMS, PAIR, with_answers=True)
    assert told.states.shape[2] > EXAM.states.shape[2]
    assert torch.equal(told.labels, EXAM.labels)


# Hosts that have learnt


def test_solvers_are_kept_checked_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setitem(pretrain.SOLVING, "quick", FitSettings(4, batch=4, warmup=1))
    monkeypatch.setattr(pretrain, "TAUGHT", 40)
    first = small_solver("target", 0, "quick", tmp_path)
    again = small_solver("target", 0, "quick", tmp_path)
    assert capfd.readouterr().out.count("pretraining target-0-quick") == 1
    assert torch.equal(first.get_input_embeddings().weight, again.get_input_embeddings().weight)
    assert not any(p.requires_grad for p in again.parameters())
    damaged = tmp_path / "target-0-quick" / "model.safetensors"
    damaged.unlink()  # `again` has the old file mapped into memory
    damaged.write_bytes(b"damaged")
    mended = small_solver("target", 0, "quick", tmp_path)
    assert "does not match its checksum" in capfd.readouterr().out
    assert torch.equal(first.get_input_embeddings().weight, mended.get_input_embeddings().weight)
    other = small_solver("target", 1, "quick", tmp_path)
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_unknown_solvers_are_refused(tmp_path: Path) -> None:
    for role, size in (("judge", "quick"), ("source", "medium")):
        with pytest.raises(ValueError, match=", ".join(SOLVERS)):
            small_solver(role, 0, size, tmp_path)


def test_the_command_names_the_hosts_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["bridges", "host", "soruce2", "--cache", str(tmp_path)])
    assert main() == 1
    assert "no host 'soruce2'; choose t5, bart, bert or one of source, target" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
