"""What a frozen model makes of soft tokens, of padding, of a penalty on both, and what a source may not have read."""

import math
from dataclasses import replace

import pytest
import torch
from bridges.connectors.translator import GatedTranslator, TranslatorSettings
from bridges.hosts import causal
from bridges.instruments.anchor import anchor_reach
from bridges.instruments.leak import leak_check
from bridges.instruments.padding import padding_shift
from bridges.instruments.soft_prompt import bridge_quality, gates
from bridges.tasks import word_problems
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

WORDS = word_problems.tokenizer("target")
DRAW = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(4, len(WORDS), (length,), generator=DRAW) for length in (16, 11, 16, 14, 7, 16)]
IDS = pad_sequence(PROMPTS, batch_first=True, padding_value=WORDS.pad_token_id, padding_side="left")
MASK = IDS.ne(WORDS.pad_token_id).long()
HIDDEN, HIDDEN_MASK = IDS[:1, -2:].expand(6, -1), torch.ones(6, 2, dtype=torch.long)
K = 5


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    host = causal.build(family, "quick", WORDS).eval()
    with torch.no_grad():  # away from the flat distribution and the flat attention of a fresh model
        for p in host.parameters():
            if p.dim() == 2:
                p.mul_(5)
    return host


@pytest.fixture(params=["llama", "mistral"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture
def soft() -> Tensor:
    return torch.randn(6, K, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def llama() -> PreTrainedModel:
    return build("llama")


def by_hand(model: PreTrainedModel, soft: Tensor | None, ids: Tensor, mask: Tensor) -> Tensor:
    """Distributions of the first token (B, V), each row without its padding, one by one."""
    rows = []
    for i in range(len(ids)):
        embeds = model.get_input_embeddings()(ids[i, mask[i].bool()])[None]
        if soft is not None:
            embeds = torch.cat([soft[i : i + 1], embeds], 1)
        rows.append(model(inputs_embeds=embeds).logits[0, -1].softmax(-1))
    return torch.stack(rows)


@torch.no_grad()
def test_the_quality_is_that_of_a_computation_by_hand_without_padding(llama: PreTrainedModel, soft: Tensor) -> None:
    found = bridge_quality(soft, llama, IDS, MASK, WORDS)
    table = llama.get_input_embeddings().weight
    assert found.soft_rms == pytest.approx((soft**2).mean(2).sqrt().mean().item())
    assert found.soft_rms_max == pytest.approx((soft**2).mean(2).sqrt().max().item())
    assert found.embedding_rms == pytest.approx((table**2).mean(1).sqrt().mean().item())
    assert found.rms_ratio == pytest.approx(found.soft_rms / found.embedding_rms)
    bridged, alone = by_hand(llama, soft, IDS, MASK), by_hand(llama, None, IDS, MASK)
    for shares, entropy, top in (
        (bridged, found.entropy_bridged, found.top_bridged),
        (alone, found.entropy_baseline, found.top_baseline),
    ):
        assert entropy == pytest.approx(-(shares * shares.log()).sum(1).mean().item(), abs=1e-4)
        best = shares.mean(0).argsort(descending=True)[:5]
        assert [word for word, _ in top] == WORDS.convert_ids_to_tokens(best.tolist())
        assert [share for _, share in top] == pytest.approx(shares.mean(0)[best].tolist(), abs=1e-5)
    assert (bridged - alone).abs().max() > 1e-2, "the soft tokens are heard"


@torch.no_grad()
def test_the_attention_is_the_last_positions_and_its_parts_sum_to_one(model: PreTrainedModel) -> None:
    width = model.get_input_embeddings().embedding_dim
    soft = 0.5 * torch.randn(6, K, width)
    found = bridge_quality(soft, model, IDS, MASK, WORDS)
    assert len(found.attention_mass) == 2
    model.set_attn_implementation("eager")
    rows = []
    for i in range(6):
        there = IDS[i, MASK[i].bool()]
        embeds = torch.cat([soft[i : i + 1], model.get_input_embeddings()(there)[None]], 1)
        maps = model(inputs_embeds=embeds, output_attentions=True).attentions
        rows.append([(weights[0, :, -1, :K].sum(-1).mean(), weights[0, :, -1, K:].sum(-1).mean()) for weights in maps])
    on_soft, on_text = torch.tensor(rows).mean(0).unbind(-1)
    assert found.attention_mass == pytest.approx(on_soft.tolist(), abs=1e-5)
    assert (on_soft + on_text).tolist() == pytest.approx([1, 1])


def test_soft_tokens_that_are_the_prompts_own_beginning_are_read_as_it(llama: PreTrainedModel) -> None:
    whole = MASK.all(1)
    ids, mask = IDS[whole], MASK[whole]
    soft = llama.get_input_embeddings()(ids[:, :K]).detach()
    found = bridge_quality(soft, llama, ids[:, K:], mask[:, K:], WORDS, baseline=(ids, mask))
    assert found.entropy_bridged == pytest.approx(found.entropy_baseline, abs=1e-6)
    assert [word for word, _ in found.top_bridged] == [word for word, _ in found.top_baseline]


def test_a_visible_baseline_stands_in_for_a_hidden_prompt(llama: PreTrainedModel, soft: Tensor) -> None:
    hidden = bridge_quality(soft, llama, HIDDEN, HIDDEN_MASK, WORDS)
    seen = bridge_quality(soft, llama, HIDDEN, HIDDEN_MASK, WORDS, baseline=(IDS, MASK))
    visible = bridge_quality(soft, llama, IDS, MASK, WORDS)
    assert (seen.entropy_bridged, seen.top_bridged) == (hidden.entropy_bridged, hidden.top_bridged)
    assert (seen.entropy_baseline, seen.top_baseline) == (visible.entropy_baseline, visible.top_baseline)
    assert seen.entropy_baseline != hidden.entropy_baseline
    few = bridge_quality(soft, llama, HIDDEN, HIDDEN_MASK, WORDS, baseline=(IDS[:2], MASK[:2]))
    assert few.attention_mass == seen.attention_mass


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_attention_implementation_is_put_back_even_after_an_error(
    llama: PreTrainedModel, soft: Tensor, implementation: str
) -> None:
    llama.set_attn_implementation(implementation)
    bridge_quality(soft, llama, IDS, MASK, WORDS)
    assert llama.config._attn_implementation == implementation
    right, right_mask = IDS.flip(1), MASK.flip(1)
    with pytest.raises(ValueError, match="pad on the left"):
        bridge_quality(soft, llama, right, right_mask, WORDS)
    with pytest.raises(ValueError, match="pad on the left"):
        bridge_quality(soft, llama, IDS, MASK, WORDS, baseline=(right, right_mask))
    assert llama.config._attn_implementation == implementation


def test_soft_tokens_of_another_width_are_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="soft tokens of width 63 before embeddings of width 64"):
        bridge_quality(torch.randn(6, K, 63), llama, IDS, MASK, WORDS)


def test_half_precision_soft_tokens_are_read(llama: PreTrainedModel, soft: Tensor) -> None:
    found = bridge_quality(soft, llama.bfloat16(), IDS, MASK, WORDS)
    assert found.soft_rms == pytest.approx((soft**2).mean(2).sqrt().mean().item())
    assert math.isfinite(found.entropy_bridged)


def test_the_report_says_whether_the_logs_criteria_are_met(llama: PreTrainedModel) -> None:
    at_scale = bridge_quality(llama.get_input_embeddings()(IDS[:, -K:]).detach(), llama, IDS, MASK, WORDS)
    assert at_scale.rms_ratio == pytest.approx(1, abs=0.1)
    said = at_scale._repr_markdown_()
    assert "within 10%: yes" in said
    assert "within 20%: yes" in said
    loud = replace(at_scale, soft_rms=1.11 * at_scale.embedding_rms, entropy_bridged=0.79 * at_scale.entropy_baseline)
    assert "within 10%: no" in loud._repr_markdown_()
    assert "within 20%: no" in loud._repr_markdown_()
    assert f"{at_scale.attention_mass[1]:.1%}" in said
    piped = replace(at_scale, top_bridged=(("|", 0.5), ("\n", 0.25)))._repr_markdown_()
    assert len(piped.splitlines()) == 6
    assert {row.replace("\\|", "").count("|") for row in piped.splitlines()} == {5}


def test_gates_tell_how_far_they_are_open() -> None:
    bridge = GatedTranslator(12, TranslatorSettings(8, 3, 2, 2, gate=0.0), 6)
    assert gates(bridge) == {"gates.0": 0, "gates.1": 0}
    with torch.no_grad():
        bridge.gates[1].fill_(-0.5)
    assert gates(bridge)["gates.1"] == pytest.approx(math.tanh(-0.5))
    assert gates(bridge.named_parameters()) == gates(bridge)
    assert gates([("layer.gate_attn", nn.Parameter(torch.tensor(3.0))), ("scale", nn.Parameter(torch.ones(1)))]) == {
        "layer.gate_attn": pytest.approx(math.tanh(3))
    }


def test_a_model_without_gates_is_named() -> None:
    wide = nn.ModuleDict({"gate_proj": nn.Linear(4, 4), "scale": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="no parameter has the word 'gate' or 'alpha' in its name"):
        gates(wide)


def test_left_padding_with_positions_from_the_mask_changes_nothing_and_right_padding_does(
    model: PreTrainedModel,
) -> None:
    def plain(ids: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).logits[:, -1]

    def positioned(ids: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask, position_ids=causal.positions(mask)).logits[:, -1]

    left = padding_shift(positioned, PROMPTS, WORDS.pad_token_id, "left")
    assert left.logits < 1e-4
    assert (left.changed, left.padded, left.rows, left.side) == (0, 3, 6, "left")
    right = padding_shift(positioned, PROMPTS, WORDS.pad_token_id, "right")
    assert right.logits > 0.1
    assert right.changed > 0
    assert "| right | 3 of 6 |" in right._repr_markdown_()
    # Read where each prompt ends, right padding is as good; a mask that hides nothing spoils the left one.
    at_end = padding_shift(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits[torch.arange(len(ids)), mask.sum(1) - 1],
        PROMPTS,
        WORDS.pad_token_id,
        "right",
    )
    assert at_end.logits < 1e-4
    assert padding_shift(lambda ids, mask: plain(ids, mask.fill_(1)), PROMPTS, WORDS.pad_token_id, "left").logits > 0.01


def test_what_padding_did_is_measured_on_padded_rows() -> None:
    def next_logits(ids: Tensor, mask: Tensor) -> Tensor:
        """Says the first token of a row, the louder the higher; in a batch the last row says 0."""
        logits = torch.nn.functional.one_hot(ids[:, 0], 10) * ids[:, :1].double()
        logits[-1, 0] += 11 * (len(ids) - 1)
        return logits

    found = padding_shift(next_logits, [torch.tensor([4]), torch.tensor([5, 6]), torch.tensor([7, 8])], 9, "left")
    assert (found.logits, found.changed, found.padded) == (9, 1, 1)
    kept = padding_shift(next_logits, [torch.tensor([4]), torch.tensor([5, 6]), torch.tensor([7, 8])], 9, "right")
    assert (kept.logits, kept.changed, kept.padded) == (0, 0, 1)
    equal = padding_shift(next_logits, [torch.tensor([4, 3]), torch.tensor([5, 6])], 9, "left")
    assert (equal.logits, equal.changed, equal.padded) == (11, 0, 0)
    assert equal._repr_markdown_() == "all prompts are equally long: padding cannot matter"


def test_prompts_that_cannot_be_padded_are_refused() -> None:
    for prompts in ([], [torch.tensor([1]), torch.tensor([], dtype=torch.long)]):
        with pytest.raises(ValueError, match="no prompts, or one without a token"):
            padding_shift(lambda ids, mask: ids.double(), prompts, 0, "left")


ANSWERS = torch.arange(6)[:, None] + torch.tensor([0, 6, 12])  # (6, 3), no two rows alike


def test_a_penalty_that_looks_at_the_first_tokens_alone_is_named(soft: Tensor) -> None:
    blind = anchor_reach(lambda s, a: s[:, :2].square().sum(-1).mean(), soft, ANSWERS)
    assert blind.answer_sensitivity == 0
    assert blind.reached == 2
    expected = (2 * soft[:, :2] / 12).norm(dim=-1).mean(0)
    assert blind.gradient == pytest.approx([*expected.tolist(), 0, 0, 0])
    assert blind.value == pytest.approx(soft[:, :2].square().sum(-1).mean().item())
    assert "| 0.00% | 2 of 5 |" in blind._repr_markdown_()


def test_a_penalty_that_watches_the_answers_is_told_from_it(soft: Tensor) -> None:
    def penalty(s: Tensor, a: Tensor) -> Tensor:
        return (s.mean((1, 2)) + a[:, 0].square() * torch.arange(6)).sum()

    watching = anchor_reach(penalty, soft, ANSWERS, permutations=3)
    assert watching.reached == 5
    assert watching.answer_sensitivity > 0.05
    one, many = (anchor_reach(penalty, soft, ANSWERS, permutations=n).answer_sensitivity for n in (1, 20))
    assert one < many, "the largest of many"
    assert watching == anchor_reach(penalty, soft, ANSWERS, permutations=3)


def test_the_sensitivity_is_a_share_of_the_value(soft: Tensor) -> None:
    def of_first(s: Tensor, a: Tensor) -> Tensor:
        return -10 - a[0, 0].double()

    found = anchor_reach(of_first, soft[:2], ANSWERS[:2], permutations=1)
    assert (found.value, found.answer_sensitivity) == (-10, pytest.approx(0.1))
    from_zero = anchor_reach(lambda s, a: of_first(s, a) + 10, soft[:2], ANSWERS[:2])
    assert from_zero.answer_sensitivity == math.inf
    assert anchor_reach(lambda s, a: 0 * s.sum(), soft, ANSWERS).answer_sensitivity == 0


def test_a_penalty_on_something_else_has_no_gradient(soft: Tensor) -> None:
    weight = nn.Parameter(torch.ones(()))
    for penalty in (lambda s, a: 2 * weight, lambda s, a: torch.tensor(3.0), lambda s, a: s.detach().sum() * weight):
        found = anchor_reach(penalty, soft, ANSWERS)
        assert (found.reached, found.gradient) == (0, (0.0,) * K)
    assert weight.grad is None
    assert not soft.requires_grad


def test_penalties_that_are_no_penalty_are_refused(soft: Tensor) -> None:
    for penalty in (lambda s, a: s.mean((1, 2)), lambda s, a: s.sum() * math.nan):
        with pytest.raises(ValueError, match="must be one finite number"):
            anchor_reach(penalty, soft, ANSWERS)
    with pytest.raises(ValueError, match="1 samples cannot trade places"):
        anchor_reach(lambda s, a: s.sum(), soft[:1], ANSWERS[:1])
    with torch.no_grad():
        assert anchor_reach(lambda s, a: s.sum(), soft, ANSWERS).reached == K


def test_the_logs_penalty_sees_no_answer_behind_more_soft_tokens_than_it_looks_at(llama: PreTrainedModel) -> None:
    """Its `[:, :20]` of a sequence that begins with soft tokens: here 3 of 5."""
    soft, answers = torch.randn(6, K, 64), IDS[:, -3:].clone()

    def of(looked_at: slice) -> float:
        def penalty(s: Tensor, a: Tensor) -> Tensor:
            ids = torch.cat([HIDDEN, a], 1)
            mask = torch.cat([HIDDEN_MASK, torch.ones_like(a)], 1)
            return causal.read_logits(llama, s, ids, mask)[:, looked_at].square().mean()

        found = anchor_reach(penalty, soft, answers.roll(1, 0) + torch.arange(6)[:, None])
        reached.append(found.reached)
        return found.answer_sensitivity

    reached: list[int] = []
    assert of(slice(0, 3)) == 0
    assert of(slice(-3, None)) > 1e-4
    assert reached == [3, 5]


def test_a_source_that_read_its_answers_is_named() -> None:
    answers = ["3 + 4 = 7 #### 7", "#### 12", "twelve eggs", "18"]
    questions = ["anna has 3 apples and buys 4", "how many ?", "a dozen eggs", "180 or 218 or 0180"]
    assert leak_check(questions, answers) == 0
    read = [f"{q} answer: {a}" for q, a in zip(questions, answers, strict=True)]
    assert leak_check(read, answers) == 1
    assert leak_check([*read[:1], *questions[1:]], answers) == 0.25
    assert leak_check(read, answers[1:] + answers[:1]) == 0, "another's answer is no leak"


@pytest.mark.parametrize("text", ["so  3\n+ 4 =\t7.", "(3 + 4 = 7)", "3 + 4 = 7"])
def test_white_space_and_punctuation_hide_no_leak(text: str) -> None:
    assert leak_check([text], [" 3 +  4\n= 7 "]) == 1


@pytest.mark.parametrize("text", ["13 + 4 = 7", "3 + 4 = 70", "3 + 4 7", "3 . 4 = 7", "", "33 4 = 7"])
def test_parts_of_words_and_other_words_are_no_leak(text: str) -> None:
    assert leak_check([text], ["3 + 4 = 7"]) == 0


def test_leaks_without_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 texts against 1 answers"):
        leak_check(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 texts against 0 answers"):
        leak_check([], [])
    with pytest.raises(ValueError, match="an answer is empty"):
        leak_check(["a", "b"], ["a", " \n"])
