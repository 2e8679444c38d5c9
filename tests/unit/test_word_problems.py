"""Word problems that solve themselves, and the two tokenizers that read them."""

import re
from itertools import pairwise

import pytest
from bridges.tasks import gsm8k
from bridges.tasks.word_problems import (
    ASK,
    FORMATS,
    GAINS,
    LARGEST,
    LOSSES,
    NAMES,
    THINGS,
    encode,
    numbers,
    problems,
    prompt,
    split,
    tokenizer,
)
from transformers import PreTrainedTokenizerFast

DRAWN = problems(2_000, 0)


@pytest.fixture(params=["source", "target"])
def words(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return tokenizer(request.param)


def test_solutions_are_what_the_question_asks() -> None:
    """Solved here again, from the words of the question alone."""
    signs = {verb: 1 for verbs in GAINS for verb in verbs} | {verb: -1 for verbs in LOSSES for verb in verbs}
    for problem in DRAWN:
        said = problem.question.split()
        has, worked = int(said[1 + 1]), []
        for verb, change in pairwise(said):
            if verb in signs:
                after = has + signs[verb] * int(change)
                worked.append((has, "+" if signs[verb] > 0 else "-", int(change), after))
                has = after
        assert problem.steps == tuple(worked), problem.question
        assert problem.answer == has


def test_numbers_stay_in_range_and_every_step_changes_something() -> None:
    met = set()
    for problem in DRAWN:
        numbers = {int(n) for n in re.findall(r"\d+", problem.question + problem.solution())}
        assert numbers <= set(range(LARGEST + 1))
        assert all(change > 0 for _, _, change, _ in problem.steps)
        met |= numbers
    assert met == set(range(LARGEST + 1)), "0 and the largest are met"


def test_questions_are_distinct_and_the_draw_is_fixed() -> None:
    assert len({p.question for p in DRAWN}) == 2_000
    assert problems(50, 3) == problems(50, 3)
    assert problems(50, 3) != problems(50, 4)
    for share in (0.0, 1.0):
        assert {len(p.steps) for p in problems(200, 0, two_steps=share)} == {1 + int(share)}
    longer = sum(len(p.steps) == 2 for p in problems(1_000, 0, two_steps=0.3))
    assert longer / 1_000 == pytest.approx(0.3, abs=0.06)


def test_all_names_things_and_verbs_are_met() -> None:
    met = {word for p in DRAWN for word in p.question.split()}
    verbs = [{*gains, *losses} for gains, losses in zip(GAINS, LOSSES, strict=True)]
    assert {*NAMES, *THINGS, *verbs[0], *verbs[1]} <= met
    for p in DRAWN:
        said = [i for word in p.question.split() for i in (0, 1) if word in verbs[i]]
        assert said == [0, 1][: len(p.steps)], "each step has verbs of its own"


def test_splits_share_no_question() -> None:
    parts = split([300, 40, 60], seed=5)
    assert [len(part) for part in parts] == [300, 40, 60]
    assert len({p.question for part in parts for p in part}) == 400
    assert split([300, 40, 60], seed=5) == parts


def test_each_format_ends_in_the_marked_answer() -> None:
    for problem in DRAWN[:200]:
        for form in FORMATS:
            assert gsm8k.marked_answer(problem.solution(form)) == str(problem.answer)
            assert gsm8k.last_number(problem.solution(form)) == str(problem.answer)
        assert problem.solution("short") == f"#### {problem.answer}"
        assert problem.solution() == problem.solution("worked")
        steps = [f"{a} {sign} {b} = {result}" for a, sign, b, result in problem.steps]
        for step in steps:
            assert step in problem.solution("worked")
            assert step in problem.solution("spoken")
        assert problem.solution("worked").count(";") == len(steps) - 1
        assert [w for w in problem.solution("spoken").split() if w.isalpha()] == ["first", "then"][: len(steps)]


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a share of 1\.5 problems with two steps"):
        problems(5, 0, two_steps=1.5)
    for count in (0, -1, 10**9):
        with pytest.raises(ValueError, match=f"asked for {count:,} problems: give 1 to "):
            problems(count, 0)
    # The library's types are checked in tests, and would refuse these before it does.
    with pytest.raises(ValueError, match="format 'rhymed' is unknown; choose from worked, spoken, short"):
        type(DRAWN[0]).solution.__wrapped__(DRAWN[0], "rhymed")
    with pytest.raises(ValueError, match="reader 'third' is unknown; choose from source, target"):
        tokenizer.__wrapped__("third")


def test_a_tokenizer_knows_every_word_and_gives_texts_back(words: PreTrainedTokenizerFast) -> None:
    for problem in DRAWN:
        text = f"{prompt(problem.question, words)} {problem.solution('spoken')} ; {words.eos_token}"
        ids = words(text, add_special_tokens=False)["input_ids"]
        assert words.unk_token_id not in ids
        assert len(ids) == len(text.split())
        assert (ids[0], ids[-1]) == (words.bos_token_id, words.eos_token_id)
        assert words.decode(ids) == text
        assert words.decode(ids, skip_special_tokens=True) == " ".join(text.split()[1:-1])
    assert words.convert_ids_to_tokens(words("zebra", add_special_tokens=False)["input_ids"]) == [words.unk_token]
    special = {words.bos_token_id, words.eos_token_id, words.pad_token_id, words.unk_token_id}
    assert special == {0, 1, 2, 3}


def test_the_readers_know_the_same_words_under_other_ids() -> None:
    source, target = tokenizer("source").get_vocab(), tokenizer("target").get_vocab()
    shared = source.keys() & target.keys()
    assert len(source) == len(target) == len(shared) + 4
    assert {*NAMES, *THINGS, ASK, "####", *map(str, range(LARGEST + 1))} <= shared
    assert sum(source[word] == target[word] for word in shared) <= 1
    assert len(source) == max(source.values()) + 1, "ids without gaps"


def test_padding_goes_where_it_is_asked_to(words: PreTrainedTokenizerFast) -> None:
    texts = [prompt(p.question, words) for p in problems(1, 0, 0.0) + problems(1, 0, 1.0)] + [prompt("", words)]
    lengths = [len(text.split()) for text in texts]
    short, longest, hidden = lengths
    assert hidden == 2 < short < longest
    left, left_mask = encode(texts, words)
    right, right_mask = encode(texts, words, side="right")
    assert left.shape == left_mask.shape == right.shape == (3, longest)
    for i, length in enumerate(lengths):
        assert left_mask[i].tolist() == [0] * (longest - length) + [1] * length
        assert right_mask[i].tolist() == left_mask[i].tolist()[::-1]
        assert left[i, longest - length :].tolist() == right[i, :length].tolist()
        assert (left[i, : longest - length] == words.pad_token_id).all()
        assert (right[i, length:] == words.pad_token_id).all()
        assert words.decode(left[i, longest - length :]) == " ".join(texts[i].split())
    assert words.padding_side == "left"
    assert prompt("", words).split() == [words.bos_token, ASK]


def test_numbers_are_found_where_they_stand(words: PreTrainedTokenizerFast) -> None:
    some = DRAWN[:50]
    ids, mask = encode([prompt(p.question, words) for p in some], words)
    there, value, place = numbers(ids, words)
    said = [[int(w) for w in p.question.split() if w.isdigit()] for p in some]
    assert value.tolist() == [n for one in said for n in one]
    assert place.tolist() == [min(i, 1) for one in said for i in range(len(one))]
    assert not (there & (mask == 0)).any()
