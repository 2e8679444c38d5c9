"""The third thread whole: GSM8K read by one language model, told to another in soft tokens, answered by it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from bridges.benches.exams import Pair
from bridges.benches.pretrain import TAUGHT, small_solver
from bridges.connectors.scale import ScaleMatch, embedding_rms
from bridges.connectors.translator import LOG, Bridge, GatedTranslator, TranslatorSettings
from bridges.hosts import causal
from bridges.hosts.causal import generate, layer_states, read_logits, until_end
from bridges.jobs.job import Job, KeptRun, Training, claim, hold_out, told
from bridges.tasks import word_problems
from bridges.tasks.gsm8k import Question, read_gsm8k, write_gsm8k
from bridges.tasks.word_problems import ASK, encode
from bridges.training.fit import GATE_GROUP, FitSettings, Group
from bridges.training.losses import kl_as_written
from bridges.training.parallel import Parallel

THREAD = "llm-to-llm"
Line = Literal["target alone", "source alone", "bridged", "shuffled source"]
LINES: tuple[Line, ...] = get_args(Line)
SMALL_TRAIN, SMALL_TEST, SMALL_SEED = 2000, 200, 2


@dataclass(frozen=True)
class Settings(Training):
    """What the translation log says of its sweep after the fixes, and what it does not say.

    The log gives rate, warm-up, tokens, layers, bottleneck, gate rate, RMS matching, the KL penalty with its start
    after the warm-up, clipping, decay, and a look every 250 steps at what must be 200 questions. This book's are: the
    batch of 16, the source's last layer, the releases of the models, and AdamW's own betas (the log has 0.9 and 0.98).
    """

    train: str = told("", "GSM8K's train.jsonl", path=True)
    test: str = told("", "GSM8K's test.jsonl, for the report", path=True)
    source: str = told("mistralai/Mistral-7B-v0.3", "causal LM that reads: a folder or a hub name")
    target: str = told("meta-llama/Llama-3.1-8B", "causal LM that answers: a folder or a hub name")
    steps: int = told(3000, "training steps")
    every: int = told(250, "steps from one validation and checkpoint to the next")
    held_out: int = told(200, "training problems held out for validation")
    asked: int = told(200, "test problems of the report, 0 for all")
    longest: int = told(320, "tokens that an answer may have")
    source_layer: int = told(-1, "the source's layer that is read: 0 its embeddings, -1 the last block")
    scale: float = told(1.0, "RMS of the soft tokens over that of the target's embeddings; 0 leaves them as they come")
    gate_rate: float = told(3.0, "learning rate of the gates over that of all else")
    kl_weight: float = told(0.03, "weight of the log's KL penalty, from the end of the warm-up on")
    kl_positions: int = told(20, "positions that it compares")
    visible: bool = told(True, "let the target read the question behind the soft tokens")
    translator: TranslatorSettings = LOG["conservative"]


NAMED = {
    "conservative": Settings(learning_rate=5e-5, warmup_steps=1000, steps=3500, translator=LOG["conservative"]),
    "aggressive": Settings(learning_rate=2e-4, warmup_steps=500, steps=2500, translator=LOG["aggressive"]),
    "high capacity": Settings(learning_rate=1e-4, warmup_steps=750, steps=3000, translator=LOG["high capacity"]),
    "efficient": Settings(learning_rate=1e-4, warmup_steps=600, steps=3000, translator=LOG["efficient"]),
    "small": Settings(
        batch_size=16,
        learning_rate=5e-3,
        warmup_steps=20,
        schedule="cosine",
        steps=240,
        every=60,
        held_out=100,
        asked=100,
        longest=20,
        source_layer=1,
        kl_weight=0.0,
        visible=False,
        translator=TranslatorSettings(bottleneck=64, tokens=8, depth=2, heads=8),
    ),
}


def small(folder: Path, cache: Path, settings: Settings = NAMED["small"]) -> Settings:
    """Write a small set in GSM8K's form with its two hosts; the settings with their paths, ready for `prepare`.

    `folder` gets `train.jsonl`, `test.jsonl`, `source` and `target`; what stands there already is left as it is. Small
    hosts come from `cache`, or are pretrained and kept there in a minute or two.
    """
    folder = folder.resolve()
    if not (folder / "test.jsonl").is_file():
        for role in ("source", "target"):
            small_solver(role, SMALL_SEED, "quick", cache).save_pretrained(folder / role)
            word_problems.tokenizer(role).save_pretrained(folder / role)
        known, unseen = word_problems.split([TAUGHT, SMALL_TEST])
        for name, problems in (("train", known[:SMALL_TRAIN]), ("test", unseen)):
            write_gsm8k(folder / f"{name}.jsonl", [(p.question, p.solution()) for p in problems])
    train, test, source, target = (str(folder / name) for name in ("train.jsonl", "test.jsonl", "source", "target"))
    return replace(settings, train=train, test=test, source=source, target=target)


def prompt(question: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a host reads before it answers, without any chat's marks; an empty question is a hidden one."""
    return f"{tokenizer.bos_token or ''}{question}\n{ASK}"


class LlmToLlmJob(Job):
    """A pair of frozen hosts, problems to train on, to validate on and to be examined in, and the bridge between.

    The source's states are computed for each batch as it is drawn: of 7,473 problems and a source of width 4,096 they
    would fill some ten GB, and one forward pass of the source costs less than a third of what the step does anyway.
    """

    thread = THREAD
    settings: Settings
    module: Bridge

    def __init__(
        self, settings: Settings, module: Bridge, pair: Pair, sets: Sequence[Sequence[Question]], run: KeptRun
    ):
        self.pair, (self.known, self.held_out, self.test) = pair, sets
        super().__init__(settings, module, len(self.known), fit_settings(settings, module), run)

    def soft(self, questions: Sequence[Question]) -> Float[Tensor, "batch tokens dim"]:
        """The soft tokens by which the target is told the questions."""
        ids, mask = self._asked(questions, "source")
        states = layer_states(self.pair.source, ids, mask, self.settings.source_layer)
        return self.module(states[None], mask)

    def summed_loss(self, questions: Sequence[Question]) -> tuple[Float[Tensor, ""], int, Float[Tensor, ""]]:
        """Cross-entropy in nats over all tokens of the solutions, how many those are, and the KL penalty."""
        own = self.settings
        ids, mask, labels = self.read(questions)
        count = int((labels != -100).sum())
        logits = read_logits(self.pair.target, self.soft(questions), ids, mask)
        penalty = logits.new_zeros(())
        if own.kl_weight and self.step >= own.warmup_steps:
            asked = self._asked(questions, "target")
            with torch.no_grad():  # as the log calls it
                baseline = self.pair.target(input_ids=asked[0], attention_mask=asked[1]).logits
            penalty = own.kl_weight * kl_as_written(logits, baseline, min(own.kl_positions, baseline.shape[1]))
        return causal.answer_loss(logits, labels) * count, count, penalty

    def read(self, questions: Sequence[Question]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and mask of what the target reads behind the soft tokens, and the solutions as labels."""
        tokenizer = self.pair.target_words
        asked = self._asked(questions, "target", self.settings.visible)
        said = encode([f" {q.solution}{tokenizer.eos_token}" for q in questions], tokenizer, "right")
        answers, there = (part.to(self.pair.target.device) for part in said)
        ids, mask = (torch.cat(both, 1) for both in zip(asked, (answers, there), strict=True))
        return ids, mask, answers.masked_fill(there == 0, -100)

    def batch_loss(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        total, count, penalty = self.summed_loss([self.known[i] for i in rows.tolist()])
        return self.parallel.mean(total, count) + penalty

    def validation_loss(self) -> float:
        """Nats per token, without the penalty."""
        parts = [self.summed_loss(some) for some in self._batches(self.held_out)]
        return sum(float(total) for total, *_ in parts) / sum(count for _, count, _ in parts)

    @torch.no_grad()
    def answers(self, line: Line) -> list[str]:
        """What is said to the test's problems; "shuffled source" tells the target another problem's states.

        Alone the target reads the question, whether it does so behind the soft tokens or not.
        """
        role: Literal["source", "target"] = "source" if line == "source alone" else "target"
        host, tokenizer = getattr(self.pair, role), getattr(self.pair, f"{role}_words")
        bridged, said = not line.endswith("alone"), []
        others = [*self.test[1:], self.test[0]] if line == "shuffled source" else self.test
        both = zip(self._batches(self.test), self._batches(others), strict=True)
        for questions, read in tqdm(list(both), desc=line, leave=False):
            shown = self.settings.visible or not bridged
            ids, mask = self._asked(questions, role, shown)
            soft = self.soft(read) if bridged else None
            new = generate(host, soft, ids, mask, self.settings.longest, pad_token_id=tokenizer.pad_token_id)
            said += tokenizer.batch_decode(until_end(new, tokenizer.eos_token_id), skip_special_tokens=True)
        return said

    def sketch(self) -> tuple[nn.Module, Callable[[], Tensor]]:
        """Of the batch with the longest texts there are, and without the penalty, which is not there at first."""
        source, target = (
            AutoModelForCausalLM.from_config(host.config, dtype=host.dtype).requires_grad_(False)
            for host in (self.pair.source, self.pair.target)
        )
        module = nn.ModuleList([bridge := assemble(self.settings, source, target, rms=1.0), source, target])
        share = self.settings.batch_size // self.parallel.world
        some = sorted(self.known, key=lambda q: len(q.question) + len(q.solution))[-share:]
        told, _ = self._asked(some, "source")
        parts = [torch.ones(part.shape, dtype=torch.long) for part in (told, *self.read(some))]
        told, ids, mask, answers = parts

        def loss() -> Tensor:
            states = layer_states(source, told, told, self.settings.source_layer)
            return causal.answer_loss(read_logits(target, bridge(states[None], told), ids, mask), answers)

        return module, loss

    def _asked(
        self, questions: Sequence[Question], role: Literal["source", "target"], shown: bool = True
    ) -> tuple[Tensor, Tensor]:
        tokenizer = getattr(self.pair, f"{role}_words")
        ids, mask = encode([prompt(q.question if shown else "", tokenizer) for q in questions], tokenizer)
        return ids.to(self.pair.target.device), mask.to(self.pair.target.device)

    def _batches(self, questions: Sequence[Question]) -> list[Sequence[Question]]:
        size = self.settings.batch_size
        return [questions[start : start + size] for start in range(0, len(questions), size)]


def assemble(settings: Settings, source: PreTrainedModel, target: PreTrainedModel, rms: float | None = None) -> Bridge:
    """The bridge between two hosts, `rms` that of the target's embeddings; draws from torch's global generator.

    It is handed the states of the one layer that is read, so that its own index of layers is 0.
    """
    translator = GatedTranslator(source.config.hidden_size, settings.translator, target.config.hidden_size)
    rms = embedding_rms(target) if rms is None else rms
    return Bridge(translator, ScaleMatch(rms * (settings.scale or 1.0), norm=settings.scale != 0), 0)


def fit_settings(settings: Settings, module: nn.Module) -> FitSettings:
    """The log's three optimiser groups: matrices decay, vectors do not, gates neither and at a rate of their own."""
    gates = replace(GATE_GROUP, rate=settings.gate_rate)
    vectors = [name for name, p in module.named_parameters() if p.dim() == 1 and not name.startswith(gates.prefix)]
    groups = (gates, *(Group(name, weight_decay=0.0) for name in vectors))
    return settings.fit(settings.steps, settings.steps, groups)


def prepare(settings: Settings, out: Path, device: str = "cpu", parallel: Parallel | None = None) -> LlmToLlmJob:
    """Read the problems and the two hosts, both frozen, and take the folder `out` for the run.

    Raises:
        OSError: in one line, for a host that cannot be loaded.
        ValueError: for settings without data, problems that cannot be read, or a folder of another run.
    """
    if not (settings.train and settings.test):
        raise ValueError("train and test belong together: give GSM8K's train.jsonl and test.jsonl, or files like them")
    files = Path(settings.train), Path(settings.test)
    train, test = (read_gsm8k(path) for path in files)
    rows, held = hold_out(len(train), settings.held_out, settings.seed)
    run = claim(out, THREAD, settings, files, parallel)
    place = run.device(device)
    (source, source_words), (target, target_words) = (
        causal.load(name, str(place)) for name in (settings.source, settings.target)
    )
    torch.manual_seed(settings.seed)
    module = assemble(settings, source, target).to(place).eval()
    pair = Pair(source, source_words, target, target_words)
    sets = [train[i] for i in rows.tolist()], [train[i] for i in held.tolist()], test[: settings.asked or None]
    return LlmToLlmJob(settings, module, pair, sets, run)
