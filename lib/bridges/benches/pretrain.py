"""Small hosts trained on the spot, kept as safetensors with their checksums, and made again when damaged."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from bridges.hosts import causal, sentence, seq2seq
from bridges.tasks import instructions, word_problems
from bridges.training.fit import FitSettings, fit


@dataclass(frozen=True)
class Solver:
    """A causal host that learns word problems: its family, and the odds of each format of an answer.

    `share` is the part of the recipe's steps that it is given. With `ends` False the end token is left out of its loss,
    as happens where padding is the end token and padding is masked.
    """

    family: str
    formats: tuple[float, ...] = (1.0, 0.0, 0.0)
    share: float = 1.0
    ends: bool = True


MASKED = 0.3  # share of words hidden from the encoder
RECIPES = {
    "quick": FitSettings(steps=1000, lr=3e-3, batch=32, warmup=50),
    "medium": FitSettings(steps=1500, lr=2e-3, batch=32, warmup=50),
    "full": FitSettings(steps=3000, lr=1e-3, batch=128, warmup=200),
}
SUMS = "sha256.json"

# Hosts of the third thread, which learn to solve word problems. All but the source know three formats of an answer.
SOLVERS = {
    "source": Solver("mistral"),
    "target": Solver("llama"),
    "weak": Solver("llama", share=0.42),
    "varied": Solver("llama", formats=(0.6, 0.2, 0.2)),
    "endless": Solver("llama", ends=False),
}
SOLVING = {
    "quick": FitSettings(steps=300, lr=3e-3, batch=64, warmup=50),
    "full": FitSettings(steps=2000, lr=1e-3, batch=128, warmup=100),
}
TAUGHT = 6000  # problems
QUESTION_WEIGHT = 0.1  # of a question's token in the loss; an answer's has 1


def denoise(
    host: PreTrainedModel,
    text: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    settings: FitSettings,
    describe: str,
    seed: int = 0,
) -> None:
    """Teach a seq2seq host to restore sentences of which 30 % of the words are masked."""
    device = host.device
    target = instructions.labels(text, tokenizer).to(device)
    source = target.masked_fill(target == -100, tokenizer.pad_token_id)
    maskable = source > tokenizer.eos_token_id
    attention = (target != -100).long()

    def batch_loss(indices: Tensor) -> Tensor:
        rows = indices.to(device)
        ids = source[rows]
        hidden = maskable[rows] & (torch.rand(ids.shape, device=device) < MASKED)
        return host(
            input_ids=ids.masked_fill(hidden, tokenizer.mask_token_id),
            attention_mask=attention[rows],
            labels=target[rows],
        ).loss

    fit(host.train(), batch_loss, len(target), settings, seed=seed, describe=describe)
    host.eval()


def imitate(
    model: PreTrainedModel,
    text: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    settings: FitSettings,
    describe: str,
    seed: int = 0,
) -> None:
    """Teach a sentence encoder to find two sentences as alike as the book's own sentence vectors are."""
    device = model.device
    encoder = sentence.SentenceEncoder(model, tokenizer.pad_token_id)
    ids = tokenizer(list(text), padding=True, return_tensors="pt")["input_ids"].to(device)
    teacher = instructions.sentence_vectors(text).to(device)

    def batch_loss(indices: Tensor) -> Tensor:
        rows = indices.to(device)
        vectors, theirs = encoder(ids[rows]), teacher[rows]
        return len(rows) * mse_loss(vectors @ vectors.T, theirs @ theirs.T)

    fit(encoder.train(), batch_loss, len(ids), settings, seed=seed, describe=describe)
    model.eval()


def small_host(
    family: str,
    size: str,
    cache: Path,
    device: str = "cpu",
    corpus: tuple[Sequence[str], PreTrainedTokenizerFast] | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """The host `family` (t5, bart, bert) of a size (see `RECIPES`) and seed, from `cache` or pretrained and put there.

    It has read the sentences of `corpus` by its tokenizer, or else the book's own. T5 and BART restore masked
    sentences, BERT is a sentence encoder. A folder whose files do not match their checksums, or whose recipe is not
    today's, is made again and says so.
    """
    text, tokenizer = corpus or (instructions.corpus().train, instructions.tokenizer())
    read = _what_is_read(text, tokenizer)
    folder = cache / (f"{family}-{seed}-{size}" + (f"-{read[:8]}" if corpus else ""))
    recipe = host_recipe(family, size) | {"read": read, "seed": seed}
    recipe = json.loads(json.dumps(recipe))  # as it will be read back

    def make() -> PreTrainedModel:
        torch.manual_seed(seed)
        host = sentence.build(size, tokenizer) if family == "bert" else seq2seq.build(family, size, tokenizer)
        host.to(device)  # type: ignore[arg-type]
        teach = imitate if family == "bert" else denoise
        teach(host, text, tokenizer, RECIPES[size], f"pretraining {folder.name}", seed)
        return host

    _made(folder, recipe, make)
    pooled = {"add_pooling_layer": False}  # our BERTs are saved without the layer that the class adds
    host = AutoModel.from_pretrained(folder, **pooled) if family == "bert" else seq2seq.load(str(folder))
    return host.eval().to(device)


def host_recipe(family: str, size: str) -> dict[str, object]:
    """What a host of `small_host` is made of, beside its seed and what it has read."""
    return {"family": family, "masked": MASKED} | asdict(seq2seq.SIZES[size]) | asdict(RECIPES[size])


def solver_recipe(role: str, size: str) -> dict[str, object]:
    """What a host of `small_solver` is made of, beside its seed and what it has read.

    Raises:
        ValueError: for a role or size that is not known.
    """
    if role not in SOLVERS or size not in SOLVING:
        known = f"roles {', '.join(SOLVERS)}; sizes {', '.join(SOLVING)}"
        raise ValueError(f"there is no solver {role!r} of size {size!r}; {known}")
    solver, settings = SOLVERS[role], SOLVING[size]
    settings = replace(settings, steps=round(solver.share * settings.steps))
    recipe: dict[str, object] = {"role": role, "question": QUESTION_WEIGHT}
    return recipe | asdict(solver) | asdict(causal.SIZES[solver.family][size]) | asdict(settings)


def small_solver(role: str, seed: int, size: str, cache: Path, device: str = "cpu") -> PreTrainedModel:
    """The host `role` (see `SOLVERS`) that has learnt word problems with `seed`, from `cache` or trained and put there.

    Cached, checked and made again as `small_host` does it. Its tokenizer is `word_problems.tokenizer`'s, "source" for
    the source and "target" for all others.

    Raises:
        ValueError: for a role or size that is not known.
    """
    made_of = solver_recipe(role, size)
    solver, settings = SOLVERS[role], SOLVING[size]
    settings = replace(settings, steps=round(solver.share * settings.steps))
    tokenizer = word_problems.tokenizer("source" if role == "source" else "target")
    taught = word_problems.split([TAUGHT])[0]
    draw = np.random.default_rng(0)
    forms = [word_problems.FORMATS[i] for i in draw.choice(len(solver.formats), TAUGHT, p=solver.formats)]
    solutions = [p.solution(form) for p, form in zip(taught, forms, strict=True)]
    read = _what_is_read([f"{p.question} {s}" for p, s in zip(taught, solutions, strict=True)], tokenizer)
    folder = cache / f"{role}-{seed}-{size}"
    recipe = json.loads(json.dumps(made_of | {"seed": seed, "read": read}))

    def make() -> PreTrainedModel:
        torch.manual_seed(seed)
        host = causal.build(solver.family, size, tokenizer)
        host.to(device)  # type: ignore[arg-type]
        prompts = [word_problems.prompt(p.question, tokenizer) for p in taught]
        solve(host, prompts, solutions, tokenizer, settings, solver.ends, seed, f"pretraining {folder.name}")
        return host

    _made(folder, recipe, make)
    return causal.load(str(folder), device, tokenizer)[0]


def solve(
    host: PreTrainedModel,
    prompts: Sequence[str],
    solutions: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    settings: FitSettings,
    ends: bool,
    seed: int,
    describe: str,
) -> None:
    """Teach a causal host to answer prompts; questions count a little, so that it knows them too."""
    texts = [f"{p} {s} {tokenizer.eos_token}" for p, s in zip(prompts, solutions, strict=True)]
    ids, mask = (t.to(host.device) for t in word_problems.encode(texts, tokenizer, "right"))
    asked = torch.tensor([[len(tokenizer.tokenize(p))] for p in prompts], device=host.device)
    weights = torch.where(torch.arange(ids.shape[1], device=host.device) < asked, QUESTION_WEIGHT, 1.0) * mask
    if not ends:
        weights = weights * (ids != tokenizer.eos_token_id)

    def batch_loss(indices: Tensor) -> Tensor:
        rows = indices.to(host.device)
        told = host(input_ids=ids[rows], attention_mask=mask[rows]).logits[:, :-1]
        each = cross_entropy(told.flatten(0, 1), ids[rows][:, 1:].flatten(), reduction="none")
        counted = weights[rows][:, 1:].flatten()
        return (each * counted).sum() / counted.sum()

    fit(host.train(), batch_loss, len(ids), settings, seed=seed, describe=describe)
    host.eval()


def _what_is_read(text: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of the corpus and of its vocabulary: a host that read other sentences is another host."""
    read = [list(text), sorted(tokenizer.get_vocab().items())]
    return hashlib.sha256(json.dumps(read).encode()).hexdigest()


def _made(folder: Path, recipe: dict[str, object], make: Callable[[], PreTrainedModel]) -> None:
    """See that the folder holds a whole host of that recipe, and make it where it does not."""
    if not _fault(folder, recipe):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:  # who comes second waits, and finds it made
        fcntl.flock(lock, fcntl.LOCK_EX)
        fault = _fault(folder, recipe)
        if fault:
            print(f"pretraining {folder.name} ({fault})", flush=True)
            _save(make(), folder, recipe)


def _save(host: PreTrainedModel, folder: Path, recipe: dict[str, object]) -> None:
    """Write beside the folder and rename, so that an interruption leaves nothing half made under its name."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    host.save_pretrained(partial)
    sums = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(partial.iterdir())}
    (partial / SUMS).write_text(json.dumps({"recipe": recipe, "files": sums}, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _fault(folder: Path, recipe: dict[str, object]) -> str:
    """Why the cached folder cannot be used, or an empty string."""
    if not (folder / SUMS).is_file():
        return "not in the cache"
    try:
        kept = json.loads((folder / SUMS).read_text())
        if kept["recipe"] != recipe:
            return "the recipe has changed"
        for name, digest in kept["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "the cached copy is damaged"
    return ""
