"""What a check-up found: every measurement beside its line, and the faults that are raised, causes first."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from html import escape

from bridges.instruments.advice import COSTS, advice
from bridges.instruments.plots import STYLE, Profile, figures


@dataclass(frozen=True)
class Fault:
    """What a measurement beyond its line points to, and why.

    With it go the topic under which it is explained, what to try first, and what that costs: a look, a line of code, or
    a training.
    """

    name: str
    topic: str
    mend: str
    why: str = ""
    cost: str = ""


# From cause to consequence: what stands earlier can bring about what stands later.
FAULTS = {
    fault.name: replace(fault, why=advice(fault.name).why, cost=advice(fault.name).cost)
    for fault in (
        Fault("values that are not finite", "chance lines", "look at what makes them; compute it in bfloat16"),
        Fault("no label is supervised", "chance lines", "look at the template that masks the prompt"),
        Fault("padding is supervised", "padding and stopping", "set the labels of padding to -100"),
        Fault("constant inputs", "chance lines", "look at what extracts the inputs: it gives every sample the same"),
        Fault("constant image inputs", "chance lines", "look at the image tower: it gives every image the same"),
        Fault("constant text inputs", "chance lines", "look at the text tower: it gives every text the same"),
        Fault("pairs that do not belong together", "chance lines", "check the order of both sides, row by row"),
        Fault("the source reads the answers", "leaks", "take the answers out of what the source reads"),
        Fault("the answers are read before they are scored", "leaks", "score each position against the token after it"),
        Fault("labels shifted twice", "chance lines", "hand over labels as the ids are: the model shifts them itself"),
        Fault("host in training mode", "gates", "call model.eval() before anything is measured or served"),
        Fault("a rate of zero", "initial values", "look at the schedule: a resumed one may think that it has ended"),
        Fault("parameters outside the optimiser", "chance lines", "build the optimiser when all parts are in place"),
        Fault("no gradient to the connector", "retrieval", "look for detach, no_grad, or frozen parameters"),
        Fault("no gradient in training mode", "retrieval", "checkpoint with use_reentrant=False"),
        Fault("connector is not the trained one", "collapse", "load its weights, and see that no key is left over"),
        Fault("parameters that did not move", "chance lines", "see that the optimiser holds them, at a true rate"),
        Fault("another model in evaluation", "gates", "look for gates or running statistics of training"),
        Fault("loss below zero", "chance lines", "keep the right pair in the denominator; log each term apart"),
        Fault("loss that diverged", "initial values", "lower the learning rate"),
        Fault("training that moves nothing", "chance lines", "see that the optimiser holds the parameters"),
        Fault("gates that are shut", "gates", "see that they are trained, at a rate that can open them"),
        Fault("inputs too quiet", "collapse", "standardise the inputs as in training: mean 0, deviation 1"),
        Fault("inputs too loud", "collapse", "standardise the inputs as in training: mean 0, deviation 1"),
        Fault("what is to be said is faint", "loudness", "whiten the inputs by the training samples; train longer"),
        Fault("tokens that do not follow the input", "collapse", "look for what drowns the input; then train longer"),
        Fault("image embeddings all alike", "initial values", "lower the learning rate, normalise the inputs"),
        Fault("text embeddings all alike", "initial values", "lower the learning rate, normalise the inputs"),
        Fault("scale far from the host's", "scale", "match the tokens' RMS to the host's embeddings"),
        Fault("temperature that hides the pairs", "chance lines", "start at 0.07 and keep the factor below 100"),
        Fault("parameters that no gradient reaches", "gradients", "look for a part that cannot act, or has saturated"),
        Fault("texts that repeat", "retrieval", "leave repeats out of a batch, or count them as right in the loss"),
        Fault("embeddings not of unit length", "chance lines", "normalise both sides before the loss"),
        Fault("input that is not used", "collapse", "train longer, or at other rates, and look at this gap again"),
        Fault("held-out loss far above the log's end", "collapse", "see that connector and host are the log's"),
        Fault("held-out pairs at chance", "retrieval", "check the order of the training pairs; train longer"),
        Fault("padding that changes the answers", "padding and stopping", "hand over the mask, and positions by it"),
        Fault("generations that do not end", "padding and stopping", "supervise the end token, apart from padding"),
        Fault("loss that does not tell what is said", "padding and stopping", "see which tokens it scores"),
        Fault("weight decay on gates", "gates", "put gates and temperatures in a group without decay"),
        Fault("one sentence for all inputs", "collapse", "judge by the conditioning gap, not by BLEU alone"),
        Fault("penalty that cannot see the answers", "penalties", "compare logits that foretell the same tokens"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One measurement: what it is, what came out, the line it is held against, and the fault it raises, if any.

    `mend` is what to try, where this measurement knows better than the fault in general.
    """

    what: str
    found: str
    line: str
    fault: str = ""
    mend: str = ""

    def __post_init__(self) -> None:
        if self.fault and self.fault not in FAULTS:
            raise ValueError(f"fault {self.fault!r} is unknown; choose from {', '.join(FAULTS)}")


@dataclass(frozen=True)
class Report:
    """The readings of a check-up in the order they were taken.

    `missing` says what was not measured, and what to give for it; `profiles` are what its page shows as plots. As rich
    text in a notebook, as plain text by `print`, and by `json` and `html`.
    """

    readings: tuple[Reading, ...]
    missing: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What was raised, causes before consequences. Mend the first, then check again."""
        mends: dict[str, str] = {}
        for reading in self.readings:
            mends[reading.fault] = mends.get(reading.fault) or reading.mend
        named = (fault for name, fault in FAULTS.items() if name in mends)
        return tuple(replace(fault, mend=mends[fault.name] or fault.mend) for fault in named)

    @property
    def headline(self) -> str:
        """The first fault, or that there is none."""
        return self.faults[0].name if self.faults else "nothing raised"

    @property
    def causes(self) -> dict[str, tuple[str, ...]]:
        """The faults that none of the others can have brought about, each with those that it can have.

        The first is the headline; the others stand in the order of what their mends cost.
        """
        raised = self.faults
        roots: dict[str, str] = {}
        for fault in raised:
            above = (cause.name for cause in raised if fault.name in advice(cause.name).brings)
            cause = next((name for name in above if name in roots), fault.name)
            roots[fault.name] = roots.get(cause, cause)
        own = [fault for fault in raised if roots[fault.name] == fault.name]
        own[1:] = sorted(own[1:], key=lambda fault: COSTS.index(fault.cost))
        return {f.name: tuple(x for x, root in roots.items() if root == f.name != x) for f in own}

    def _advice(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Each cause with its topic, and what is to be said of it, by what it answers."""
        faults = {fault.name: fault for fault in self.faults}
        for name, brought in self.causes.items():
            fault = faults[name]
            seen = (f"{r.what}: {r.found}, against {r.line}" for r in self.readings if r.fault == name)
            told = {"seen": "; ".join(seen), "why": fault.why, f"try ({fault.cost})": fault.mend}
            yield f"{name} (see {fault.topic})", told | ({"may follow from it": ", ".join(brought)} if brought else {})

    def _unmeasured(self) -> str:
        return f"Not measured: {'; '.join(self.missing)}." if self.missing else ""

    def __str__(self) -> str:
        rows = [(r.what, r.found, r.line, "<--" if r.fault else "") for r in self.readings]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        table = ("  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows)
        lines: list[str] = []
        for number, (title, told) in enumerate(self._advice(), 1):
            lines += [f"{number}. {title}", *(f"   {what}: {text}" for what, text in told.items())]
        return "\n".join([self.headline, "", *table, "", *lines, "", self._unmeasured()]).rstrip()

    def _repr_markdown_(self) -> str:
        head = f"**{self.headline}**\n\n| measured | found | line | raises |\n|---|---|---|---|\n"
        rows = (f"| {r.what} | {r.found} | {r.line} | {r.fault} |" for r in self.readings)
        lines: list[str] = []
        for number, (title, told) in enumerate(self._advice(), 1):
            lines += [f"{number}. **{title}**", *(f"   - *{what}*: {text}" for what, text in told.items())]
        return head + "\n".join(rows) + "\n\n" + "\n".join([*lines, "", self._unmeasured()])

    def json(self) -> str:
        """The report as a JSON object with the keys headline, faults, causes, readings, missing and profiles."""
        curves = [asdict(profile) for profile in self.profiles]
        for curve in curves:  # JSON knows no number that is not finite
            curve["values"] = [value if math.isfinite(value) else None for value in curve["values"]]
        found = {
            "headline": self.headline,
            "faults": [asdict(fault) for fault in self.faults],
            "causes": self.causes,
            "readings": [asdict(reading) for reading in self.readings],
            "missing": list(self.missing),
            "profiles": curves,
        }
        return json.dumps(found, indent=1)

    def html(self) -> str:
        """The report as a page of its own, which needs nothing else to be read."""
        cells = "".join(
            f"<tr{' class=raised' if r.fault else ''}>"
            + "".join(f"<td>{escape(text)}</td>" for text in (r.what, r.found, r.line, r.fault))
            + "</tr>\n"
            for r in self.readings
        )
        items = "".join(
            f"<li><strong>{escape(title)}</strong>\n<dl>"
            + "".join(f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>\n" for what, text in told.items())
            + "</dl></li>\n"
            for title, told in self._advice()
        )
        mends = f"<h2>What to try, in this order</h2>\n<ol>\n{items}</ol>\n" if items else ""
        missing = f"<p>{escape(self._unmeasured())}</p>\n" if self.missing else ""
        plots = figures(self.profiles)
        return (
            '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Check-up of a bridge</title>\n'
            '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">\n'
            f"<style>{PAGE}{STYLE}</style>\n<h1>{escape(self.headline)}</h1>\n{mends}<h2>What was measured</h2>\n"
            f"{plots}<table>\n<tr><th>measured<th>found<th>line<th>raises</tr>\n{cells}</table>\n{missing}</html>\n"
        )


PAGE = """\
body { font: 1rem/1.5 system-ui; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
table { display: block; overflow-x: auto; border-collapse: collapse; overflow-wrap: normal }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #8888 }
.raised { font-weight: 600 } dt { font-style: italic } dd { margin: 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .8rem; margin: 0 0 1rem }
@media (max-width: 34rem) { dl { display: block } }
"""
