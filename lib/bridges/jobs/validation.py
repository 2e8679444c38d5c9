"""What a thread's run amounts to: reports as markdown and as data, with the instruments' lines beside the numbers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.nn.functional import normalize

from bridges.instruments.chance import mean_chance_loss
from bridges.instruments.retrieval import Recall, recall
from bridges.instruments.translation import floors
from bridges.instruments.translation import validate as validate_translator
from bridges.instruments.uncertainty import Estimate, wilson
from bridges.jobs.image_text import ImageTextJob
from bridges.jobs.llm_to_llm import LINES, LlmToLlmJob
from bridges.jobs.vector_to_text import VectorToTextJob
from bridges.tasks.gsm8k import last_number, marked_answer
from bridges.training.losses import CLIP_WEIGHT, MRL_WEIGHT


@dataclass(frozen=True)
class ValidationReport:
    """Markdown to read and data to reckon with."""

    markdown: str
    data: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write `report.md` and `report.json`."""
        (folder / "report.md").write_text(self.markdown + "\n", encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")

    def _repr_markdown_(self) -> str:
        return self.markdown


def vector_to_text(job: VectorToTextJob) -> ValidationReport:
    """The resampler log's validation report of the clips held out, with floors, interval and conditioning gap."""
    known, held = job.clips, job.held_out
    labels = job.encode(held.sentences)
    found = validate_translator(
        job.translate,
        lambda vectors: job.loss(vectors, labels),
        held.vectors,
        held.sentences,
        floors(known.sentences, known.vectors, held.sentences, held.vectors),
    )
    pairs = [{"reference": r, "translation": t} for r, t in zip(found.references, found.outputs, strict=True)]
    return ValidationReport(found._repr_markdown_(), found.summary() | {"translations": pairs})


def image_text(job: ImageTextJob) -> ValidationReport:
    """Recall among the pairs held out, by every Matryoshka prefix and in both directions, beside chance.

    Intervals are Wilson's, of the pairs, for the one bridge there is.
    """
    image, text, _ = job.embedded()
    found: dict[str, Recall] = {}
    for width in job.settings.prefixes:
        ours, theirs = (normalize(part[:, :width], dim=-1) for part in (image, text))
        found[f"image to text, {width}"] = recall(ours, theirs)
        found[f"text to image, {width}"] = recall(theirs, ours)
    chance = next(iter(found.values())).chance
    count = len(image)
    rows = [(n, [_percent(wilson(round(v * count / 100), count)) for v in r.at.values()]) for n, r in found.items()]
    rows.append((f"chance, {count} candidates", [f"{value:.2f}" for value in chance.values()]))
    table = "| direction, prefix | " + " | ".join(f"R@{k} (%)" for k in chance) + " |\n|---|" + "--:|" * len(chance)
    table += "".join(f"\n| {name} | " + " | ".join(cells) + " |" for name, cells in rows)
    loss = job.validate()
    # The last batch of what is held out may be short, and its chance line is lower.
    line = (CLIP_WEIGHT + MRL_WEIGHT) * mean_chance_loss(count, job.settings.batch_size)
    return ValidationReport(
        f"{table}\n\nHeld-out loss {loss:.3f} nats, chance {line:.3f}.",
        {"recall": {name: asdict(r) for name, r in found.items()}, "loss": loss, "chance": line},
    )


def llm_to_llm(job: LlmToLlmJob) -> ValidationReport:
    """Target alone, source alone, bridged, and bridged from another problem's states, each read in two ways.

    "Marked" takes the number behind the first `####` (GSM8K's strict match), "last" the last number of the answer
    (flexible extract). Intervals are Wilson's, of the questions, for the one bridge there is.
    """
    rows: list[str] = []
    data: dict[str, Any] = {}
    for line in LINES:
        said = job.answers(line)
        shares = {}
        for name, extract in (("marked", marked_answer), ("last", last_number)):
            right = sum(extract(text) == q.answer for text, q in zip(said, job.test, strict=True))
            shares[name] = wilson(right, len(said))
        data[line] = {name: asdict(share) for name, share in shares.items()} | {"answers": said}
        rows.append(f"| {line} | " + " | ".join(_percent(share) for share in shares.values()) + " |")
    table = "| | marked (%) | last number (%) |\n|---|--:|--:|\n" + "\n".join(rows)
    first = job.test[0]
    sample = f"*{first.question.strip()}* The bridged target says: `{data['bridged']['answers'][0]!r}`"
    told = f"{len(job.test)} questions, {'visible to' if job.settings.visible else 'hidden from'} the bridged target."
    loss = job.validate()
    return ValidationReport(
        f"{table}\n\n{told} Held-out loss {loss:.3f} nats per token.\n\n{sample}", {"lines": data, "loss": loss}
    )


def _percent(share: Estimate) -> str:
    return f"{100 * share.mean:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
