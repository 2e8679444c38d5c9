"""Sentence encoders, and sentences of one's own: read as they were meant, or refused with the file and the mend."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bridges.benches import translation
from bridges.benches.fingerprint import digest
from bridges.hosts import sentence, seq2seq
from bridges.hosts.sentence import SentenceEncoder, load
from bridges.tasks import instructions
from bridges.tasks.sentences import FEWEST, read_sentences, spaced, word_tokenizer
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import normalize
from transformers.modeling_outputs import BaseModelOutput

WORDS = instructions.tokenizer()
TEXTS = ("wash a dog", "now it is time to wash a dog like a professional", "fold some paper", "wash a dog")


def encoder(seed: int = 0) -> SentenceEncoder:
    torch.manual_seed(seed)
    return SentenceEncoder(sentence.build("quick", WORDS), WORDS.pad_token_id).eval()


def test_a_vector_is_the_mean_over_words_at_norm_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made, states = encoder(), torch.randn(300, 6)
    monkeypatch.setattr(made.model, "forward", lambda input_ids, **_: BaseModelOutput(states[input_ids]))
    vectors = made(torch.tensor([[7, 9, 9, 0, 0], [5, 4, 3, 2, 1], [0, 0, 0, 0, 0]]))
    by_hand = [(states[7] + 2 * states[9]) / 3, states[1:6].mean(0), torch.zeros(6)]
    torch.testing.assert_close(vectors, normalize(torch.stack(by_hand), dim=1))
    assert vectors[:2].norm(dim=1).tolist() == pytest.approx([1, 1])


def test_a_sentence_has_one_vector_whatever_stands_beside_it() -> None:
    made = encoder()
    vectors = made.encode(TEXTS, WORDS)
    assert torch.equal(vectors[0], vectors[3])
    assert (vectors[0] - vectors[2]).norm() > 0.01
    torch.testing.assert_close(made.encode(TEXTS, WORDS, batch=1), vectors)
    torch.testing.assert_close(made.encode(TEXTS[1:], WORDS, batch=2), vectors[1:])
    long = "dog " * 300
    torch.testing.assert_close(made.encode([long, "dog"], WORDS)[0], made.encode(["dog " * 127], WORDS)[0])


def test_a_still_copy_says_the_same_and_can_be_vectorised() -> None:
    made = [encoder(seed).train() for seed in range(2)]
    still = [one.still() for one in made]
    assert all(one.training and not copy.training for one, copy in zip(made, still, strict=True))
    ids = WORDS(list(TEXTS), padding=True, return_tensors="pt")["input_ids"]

    def first(parameters: dict[str, Tensor], buffers: dict[str, Tensor], rows: Tensor) -> Tensor:
        return functional_call(still[0], (parameters, buffers), (ids[rows],))[0, 0]

    found = vmap(grad(first))(*stack_module_state(still), torch.tensor([[0, 1], [1, 2]]))
    for index, (one, rows) in enumerate(zip(made, ([0, 1], [1, 2]), strict=True)):
        vectors = one.eval()(ids[rows])
        torch.testing.assert_close(vectors, still[index](ids[rows]))
        vectors[0, 0].backward()
        for name, parameter in one.named_parameters():
            torch.testing.assert_close(found[name][index], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    encoder().model.save_pretrained(tmp_path / "encoder")
    instructions.tokenizer().save_pretrained(tmp_path / "encoder")  # one that keeps no padding of earlier calls
    return tmp_path / "encoder"


def test_a_saved_encoder_loads_back(folder: Path) -> None:
    loaded, words = load(str(folder))
    assert not loaded.training
    assert torch.equal(loaded.encode(TEXTS, words), encoder().encode(TEXTS, WORDS))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_padding(path: Path) -> None:
    told = json.loads(path.read_text())
    del told["pad_token"]
    path.write_text(json.dumps(told))


def with_decoder(path: Path) -> None:
    seq2seq.build("bart", "quick", WORDS).save_pretrained(path.parent)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", Path.unlink, "no sentence encoder could be loaded from"),
        ("config.json", half, "no sentence encoder could be loaded from"),
        ("model.safetensors", Path.unlink, "no sentence encoder could be loaded from"),
        ("model.safetensors", half, "no sentence encoder could be loaded from"),
        ("tokenizer.json", half, "no sentence encoder could be loaded from"),
        ("tokenizer.json", lambda path: path.write_text("{}"), "no sentence encoder could be loaded from"),
        ("tokenizer.json", Path.unlink, "holds no tokenizer that knows a word: save the model's own beside it"),
        ("tokenizer_config.json", without_padding, "is no sentence encoder of BERT's kind"),
        ("config.json", with_decoder, "is no sentence encoder of BERT's kind"),
    ],
)
def test_a_folder_that_holds_no_whole_encoder_is_refused(
    name: str, damage: Callable[[Path], object], message: str, folder: Path
) -> None:
    damage(folder / name)
    if message.startswith("holds"):
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(OSError, match=message) as told:
        load(str(folder))
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)
    if name == "model.safetensors":
        with pytest.raises(OSError, match="no encoder-decoder could be loaded"):
            seq2seq.load(str(folder))


LINES = [f"Line {i}, the {i}th." for i in range(FEWEST + 5)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\n\n \t\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_sentences_are_split_once_and_for_all(newline: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    doubled = newline.join([*LINES, "  Line 0,\tthe\u00a00th. ", LINES[3]]) + newline
    path.write_bytes((mark + doubled).encode())
    read = read_sentences(path, 5)
    assert (len(read.train), len(read.validation)) == (FEWEST, 5)
    assert {*read.train, *read.validation} == set(LINES)
    assert read == read_sentences(path, 5)
    assert read != read_sentences(path, 5, seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", f"has 0 distinct sentences: 5 are held out and at least {FEWEST} needed"),
        (b" \n\t\n\n", "has 0 distinct sentences"),
        (b"one\n" * 100, "has 1 distinct sentences"),
        ("\n".join(LINES[1:]).encode(), f"has {FEWEST + 4} distinct sentences: .* so give more"),
        ("\n".join(LINES).encode("utf-16"), r"is not UTF-8 \(invalid start byte at byte 0\): save it as UTF-8 text"),
        (b"x" * 20_000 + b"\n\xe9t", r"is not UTF-8 \(invalid continuation byte at byte 20001\)"),
    ],
    ids=["empty", "blank", "one", "one too few", "UTF-16", "Latin-1"],
)
def test_a_file_that_cannot_be_split_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"^{path} {message}"):
        read_sentences(path, 5)
    for nothing in (tmp_path, tmp_path / "other.txt"):
        with pytest.raises(ValueError, match=f"^{nothing} is not there: give a text file with one sentence a line"):
            read_sentences(nothing, 5)


def test_a_word_tokenizer_keeps_the_commonest_words_and_decodes_as_spaced() -> None:
    texts = ["Don't wash the dog!", "wash, wash the İstanbul naïve dog — 3.5°C", "The cat"]
    words = word_tokenizer(texts)
    assert [words.pad_token_id, words.eos_token_id, words.mask_token_id, words.unk_token_id] == [0, 1, 2, 3]
    ids = words(texts)["input_ids"]
    assert tuple(words.batch_decode(ids, skip_special_tokens=True)) == spaced(texts, words)
    assert spaced(texts, words)[0] == "don ' t wash the dog !"
    few = word_tokenizer(texts, vocabulary=6)
    assert set(few.get_vocab()) == {"<pad>", "</s>", "<mask>", "<unk>", "wash", "the"}
    assert few("The zebra")["input_ids"] == [few.get_vocab()["the"], 3, 1]
    labels = instructions.labels(["the", "wash the dog"], few)
    assert labels.tolist() == [[few.get_vocab()["the"], 1, -100, -100], [*few("wash the")["input_ids"][:2], 3, 1]]


def test_a_bench_takes_a_readers_own_text_and_encoder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\n".join(LINES))
    text, own = read_sentences(tmp_path / "mine.txt", 5), load(str(folder))
    book = translation.bench(tmp_path, held_out=5)
    bench = translation.bench(tmp_path, held_out=5, given_text=text, given_encoder=own)
    assert (bench.known.texts, bench.unseen.texts) == (text.train, text.validation)
    assert torch.equal(bench.unseen.vectors, encoder().encode(text.validation, own[1]))
    assert bench.references == spaced(text.validation, word_tokenizer(text.train))
    others = [
        translation.bench(tmp_path, held_out=5, given_text=read_sentences(tmp_path / "mine.txt", 5, seed=1)),
        translation.bench(tmp_path, held_out=5, given_encoder=own),
        translation.bench(tmp_path, held_out=5, given_encoder=(encoder(seed=1), own[1])),
    ]
    assert len({digest(one) for one in (book, bench, *others)}) == 5
