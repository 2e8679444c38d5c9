"""Connectors into hosts that speak: a sentence vector into a T5, one language model's states into another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bridges.benches import answering
from bridges.benches.answering import BridgeRecipe, untrained
from bridges.benches.exams import LONGEST, Bench, Exam, bridge_logits
from bridges.benches.pretrain import small_host
from bridges.connectors import peers
from bridges.connectors.pooling import VectorToTokens
from bridges.connectors.projection import Expander
from bridges.connectors.resampler import ResamplerSettings, VectorResampler
from bridges.connectors.scale import embedding_table
from bridges.connectors.translator import Bridge, TranslatorSettings
from bridges.hosts.causal import answer_loss, generate, read_logits, until_end
from bridges.instruments.anchor import anchor_reach
from bridges.instruments.checkup import Generative
from bridges.instruments.generation import degeneration
from bridges.instruments.leak import leak_check
from bridges.instruments.padding import padding_shift
from bridges.planted.cases import BATCH, TAUGHT, Case, Samples, Size, Speech, chosen
from bridges.tasks import instructions
from bridges.training.fit import GATE_GROUP, FitSettings
from bridges.training.losses import kl_aligned, kl_as_written

# Hosts from which a bridge learns to speak in the few steps of a case: one that stays silent is no healthy case.
HEARD = (2, 3)
QUIET = 0.01  # times the inputs
MASKED = ("perceiver-pytorch", "Idefics2", "BLIP-2 Q-Former")  # peers that take a mask


class AsSequence(nn.Module):
    """A vector as a sequence of one, for a connector that reads sequences."""

    def __init__(self, build: Callable[..., nn.Module], *shape: int):
        super().__init__()
        self.inner = build(*shape)

    def forward(self, vector: Tensor) -> Tensor:
        return self.inner(vector.unsqueeze(1))


def vector_to_text(size: Size, seeds: range, hosts: Path, only: Sequence[str] = ()) -> Iterator[Case]:
    """The first thread: sentence vectors into a small T5 from the folder `hosts`, by all connectors or `only` some."""
    host = cast(Any, small_host("t5", "quick", hosts).requires_grad_(False))
    tokenizer, texts = instructions.tokenizer(), instructions.corpus(TAUGHT + size.samples).train
    vectors = instructions.sentence_vectors(texts)
    vectors = (vectors - vectors.mean(0)) / vectors.std(0)
    wide, dim = vectors.shape[1], host.config.d_model
    shape = ResamplerSettings(size.width, size.tokens, 2, 4, latent_std=1.0)
    builders: dict[str, Callable[[], nn.Module]] = {
        "VectorResampler": lambda: VectorResampler(wide, shape, dim),
        "VectorToTokens": lambda: VectorToTokens(wide, size.tokens, dim),
    } | {name: partial(AsSequence, peer, wide, size.width, size.tokens, dim) for name, peer in peers.PEERS.items()}

    def samples(part: slice) -> Samples:
        labels = instructions.labels(texts[part], tokenizer)
        return Samples(
            (vectors[part],), labels, lambda tokens, rows: host(inputs_embeds=tokens, labels=labels[rows]).loss
        )

    def said(tokens: Tensor) -> list[str]:
        ids = host.generate(inputs_embeds=tokens, max_new_tokens=20, do_sample=False, num_beams=1)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    taught, held = samples(slice(0, TAUGHT)), samples(slice(TAUGHT, None))
    for seed in seeds:
        case = partial(Case, "vector to text", seed=seed)
        settings = FitSettings(size.steps, lr=3e-3, batch=BATCH)
        for name, build in chosen(builders, only).items():
            own = Speech(build, taught, held, embedding_table(host), settings, seed)
            for planted, names, bridge in own.cases():
                if not planted:
                    with torch.no_grad():
                        tokens = bridge.connector(*held.inputs)
                    bridge = replace(bridge, said=said(tokens), wanted=texts[TAUGHT:])
                    # Decoding that is handed the mean over inputs in the place of each one's own tokens.
                    forgets = replace(bridge, said=said(tokens.mean(0, keepdim=True)) * len(tokens))
                    yield case(
                        name,
                        planted="decoding forgets the input",
                        names=("one sentence for all inputs",),
                        bridge=forgets,
                    )
                yield case(name, planted=planted, names=names, bridge=bridge)
        quiet = Speech(lambda: Expander(wide, size.tokens, dim), taught, held, embedding_table(host), settings, seed)
        bridge = quiet.seen(*quiet.trained(settings, QUIET), QUIET)
        yield case("Expander", planted="inputs a hundredth as loud", names=("inputs too quiet",), bridge=bridge)


class _Told(nn.Module):
    """The book's translator and its scale, given the states of the one layer that it reads."""

    def __init__(self, bridge: Bridge):
        super().__init__()
        self.translator, self.scale = bridge.translator, bridge.scale

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.scale(self.translator(states, mask))


def one_llm_to_another(size: Size, seeds: range, hosts: Path, only: Sequence[str] = ()) -> Iterator[Case]:
    """The third thread: one small language model's states into another, which does not see the question."""
    for seed in seeds:
        bench = answering.bench(hosts, asked=size.samples, taught=TAUGHT)
        yield from _between(bench.home(HEARD[seed % len(HEARD)]), size, seed, only)


def _between(own: Bench, size: Size, seed: int, only: Sequence[str]) -> Iterator[Case]:
    target = cast(Any, own.pair.target)
    fits = FitSettings(size.steps, lr=5e-3, batch=BATCH)
    gated = replace(fits, groups=(GATE_GROUP,))
    recipe = BridgeRecipe(gated, TranslatorSettings(size.width, size.tokens, 2, 4))
    shape = own.pair.source.config.hidden_size, size.width, size.tokens, target.config.hidden_size
    builders: dict[str, Callable[[], nn.Module]] = {"GatedTranslator": lambda: _Told(untrained(recipe, seed, own.pair))}
    builders |= {name: partial(peers.PEERS[name], *shape) for name in MASKED}

    def samples(exam: Exam) -> Samples:
        def loss(tokens: Tensor, rows: Tensor) -> Tensor:
            return answer_loss(bridge_logits(target, tokens, exam, rows, False), exam.labels[rows])

        return Samples((exam.states[1], exam.mask), exam.labels, loss)

    case = partial(Case, "one LLM to another", seed=seed)
    taught, held = samples(own.taught), samples(own.exams["report"])
    for name, build in chosen(builders, only).items():
        settings = gated if name == "GatedTranslator" else fits
        speech = Speech(build, taught, held, embedding_table(target), settings, seed)
        for planted, names, bridge in speech.cases():
            if not planted:
                evidence = _evidence(own, bridge)
                bridge = replace(bridge, **{key: sound for key, (sound, *_) in evidence.items()})
                for key, (_, fault, what, raised) in evidence.items():
                    yield case(name, planted=what, names=(raised,), bridge=replace(bridge, **{key: fault}))
            yield case(name, planted=planted, names=names, bridge=bridge)


def _evidence(own: Bench, bridge: Generative) -> dict[str, tuple[Any, Any, str, str]]:
    """What other instruments say of a sound set-up and of a broken one, what was broken, and the fault's name."""
    exam, target, tokenizer = own.exams["report"].first(32), own.pair.target, own.pair.target_words
    (ids, mask), end = exam.visible, cast(int, tokenizer.eos_token_id)
    rows = torch.arange(len(exam.problems))
    with torch.no_grad():
        soft = bridge.connector(exam.states[1], exam.mask)

    def said(**options: Any) -> Any:
        found = generate(target, soft, *exam.hidden, LONGEST, **options)
        return degeneration(until_end(found, end), end, LONGEST)

    def counted(ids: Tensor, mask: Tensor) -> Tensor:
        return read_logits(target, None, ids, mask)[:, -1]

    def plain(ids: Tensor, mask: Tensor) -> Tensor:
        return target(input_ids=ids, attention_mask=mask).logits[:, -1]

    prompts = [row[there.bool()] for row, there in zip(ids, mask, strict=True)]
    solutions = [p.solution() for p in exam.problems]
    asked = [p.question for p in exam.problems]
    leaked = [f"{question} {solution}" for question, solution in zip(asked, solutions, strict=True)]
    pad = cast(int, tokenizer.pad_token_id)
    with torch.no_grad():
        alone = target(input_ids=ids, attention_mask=mask).logits

    def told(soft: Tensor | None, labels: Tensor, visible: bool) -> Tensor:
        return bridge_logits(target, soft, replace(exam, labels=labels), rows, visible)

    def aligned(soft: Tensor, labels: Tensor) -> Tensor:
        length = labels.shape[1] + 1
        ours, theirs = (told(x, labels, seen)[:, -length:-1] for x, seen in ((soft, False), (None, True)))
        return kl_aligned(ours, theirs, labels != -100, 20)

    def as_written(soft: Tensor, labels: Tensor) -> Tensor:
        return kl_as_written(told(soft, labels, False), alone, 3)

    return {
        "leak": (
            leak_check(asked, solutions),
            leak_check(leaked, solutions),
            "the source reads the solutions",
            "the source reads the answers",
        ),
        "padding": (
            padding_shift(counted, prompts, pad, "left"),
            padding_shift(plain, prompts, pad, "right"),
            "padding behind the prompts",
            "padding that changes the answers",
        ),
        "generations": (said(), said(suppress_tokens=[end]), "no end token", "generations that do not end"),
        "penalty": (
            anchor_reach(aligned, soft, exam.labels, 2),
            anchor_reach(as_written, soft, exam.labels, 2),
            "penalty as the log writes it",
            "penalty that cannot see the answers",
        ),
    }
