"""Sphinx extension: pages show executed chapters and computed verdicts, or the build stops.

Each stripped notebook is swapped for its executed copy while Sphinx reads it. The directive `ledger` and the role
`verdict` show what `_build/records/ledger.json` holds, so no result is typed into a page.
"""

import json
import re
from collections import Counter
from functools import cache
from typing import Any

import nbformat
from bridges.instruments.uncertainty import Estimate, wilson
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

from press import BUILD, EXECUTED, LEDGER, NOTEBOOKS, RECORDS, ROOT, story
from press.cards import claim_card, measured, number, threshold
from press.chapter import word_of
from press.claims import Claim, load_claims
from press.data import recorded
from press.ledger import second_words, undecided
from press.looks import of_effects, of_kinds


def swap(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace a chapter's source with its executed copy.

    Raises:
        ExtensionError: when the copy is missing, or was made from other code than the chapter now holds.
    """
    if not docname.startswith(f"{NOTEBOOKS.name}/"):
        source[0] = numbered(source[0])
        return
    path = EXECUTED / f"{word_of(docname.split('/', 1)[1])}.ipynb"
    if not path.is_file():
        raise ExtensionError(f"{docname} has not been executed: run make book")
    text = path.read_text(encoding="utf-8")
    if code(nbformat.reads(text, 4)) != code(nbformat.reads(source[0], 4)):
        raise ExtensionError(
            f"{path.relative_to(ROOT)} was made from other code than {docname} holds: run make book; if that finds"
            " nothing to do, delete that copy first"
        )
    app.env.note_dependency(str(path))
    notebook = nbformat.reads(text, 4)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] += ["remove-cell"]  # the provenance at the chapter's end says it in words
        if cell.cell_type == "markdown":
            cell.source = numbered(cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = numbered(output["data"]["text/markdown"])
    source[0] = nbformat.writes(notebook)


def numbered(text: str) -> str:
    """Links to chapters as their files are called: a text names a chapter by its word alone."""
    files = {word_of(p.stem): p.stem for p in NOTEBOOKS.glob("[0-9][0-9]_*.py")}
    return re.sub(r"\b([a-z_]+)(?=\.ipynb)", lambda match: files.get(match[1], match[1]), text)


def code(notebook: nbformat.NotebookNode) -> list[str]:
    """The sources of all cells but the one papermill injects."""
    return [cell.source for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]


@cache
def rows() -> dict[str, dict[str, Any]]:
    """The ledger's rows by claim."""
    if not LEDGER.is_file():
        raise ExtensionError(f"{LEDGER.relative_to(ROOT)} is not there: run make book")
    return {row["id"]: row for row in json.loads(LEDGER.read_text())}


@cache
def agreements() -> dict[str, dict[str, int]]:
    """How the runs of each chapter that was held to rows of record compare with them, by the chapter's word."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json")) if path != LEDGER}
    return {word: record["agreement"] for word, record in records.items() if "agreement" in record}


def word(claim: Claim) -> str:
    """The claim's verdict in a word, or that it is still pending."""
    return rows()[claim.id]["verdict"] if claim.id in rows() else "pending"


class VerdictRole(SphinxRole):
    """`` {verdict}`A1` ``: the word of a claim's verdict, as the run gave it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        claim = load_claims().get(self.text)
        if claim is None:
            message = self.inliner.reporter.error(f"no claim {self.text!r} in claims.yml", line=self.lineno)
            return [], [message]
        return [nodes.strong(text=word(claim))], []


class LedgerDirective(SphinxDirective):
    """`ledger` alone counts the verdicts; with a thread's letter it lists its claims, with `undecided` such parts."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        claims = load_claims().values()
        if not self.arguments:
            counts = Counter(word(claim) for claim in claims)
            text = f"Of {len(claims)} claims: {', '.join(f'{n} {w}' for w, n in counts.most_common())}."
            return [nodes.paragraph(text=text)]
        if self.arguments[0] == "undecided":
            lines = self._undecided()
            if not lines:
                return [nodes.paragraph(text="No part of any claim is undecided.")]
        else:
            lines = ["````{list-table}", ":header-rows: 1", ":widths: 6 46 16 24 8", ""]
            lines += ["* - id", "  - claim", "  - verdict", "  - observed", "  - n"]
            for claim in claims:
                if claim.id.startswith(self.arguments[0]):
                    lines += self._row(claim)
        node = nodes.container()
        self.state.nested_parse(StringList([*lines, "````"], source=self.get_source_info()[0]), 0, node)
        return node.children

    def _undecided(self) -> list[str]:
        lines = []
        for claim, part, seen in undecided(rows().values()):
            lines += [
                f"* - {{ref}}`{claim.id} <verdict-{claim.id.lower()}>`",
                f"  - {part.metric.replace('_', ' ')}",
                f"  - {part.unit} {threshold(part)}",  # a cell that began with > would be a quotation
                f"  - {measured(seen.observed, seen.interval)}",
                f"  - {seen.seeds or seen.n}",
                f"  - {seen.finding(part)}",
            ]
        head = ["* - claim", "  - part", "  - line", "  - observed", "  - seeds", "  - what is known"]
        return lines and ["````{list-table}", ":header-rows: 1", ":widths: 8 24 12 18 8 30", "", *head, *lines]

    def _row(self, claim: Claim) -> list[str]:
        row = rows().get(claim.id)
        if row is None:
            return [
                f"* - {claim.id}",
                f"  - {claim.statement}",
                "  - pending",
                "  - no experiment yet",
                "  -",
            ]
        seen = "" if row["observed"] is None else measured(row["observed"], row["interval"], claim.parts[0].unit)
        link = f"{{ref}}`{row['verdict']} <verdict-{claim.id.lower()}>`"
        return [
            f"* - {claim.id}",
            f"  - {claim.statement}",
            f"  - {link} ({row['strength']})",
            f"  - {seen}",
            f"  - {row['n']}",
        ]


class RuleDirective(SphinxDirective):
    """`rule` tries the rule of when a part has seeds enough, on parts whose truth is known."""

    def run(self) -> list[nodes.Node]:
        def percent(share: Estimate) -> str:
            return f"{100 * share.mean:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"

        parts = 4000
        lines = [
            f"````{{list-table}} What the rule does with {parts:,} parts of each kind whose truth is known, in percent "
        ]
        lines[0] += "with the 95 % binomial interval."
        lines += [":header-rows: 1", "", "* - one seed's value", "  - identical arms told apart"]
        lines += ["  - true value outside an interval of one arm"]
        for kind, (difference, level) in of_kinds(parts).items():
            lines += [f"* - {kind}", f"  - {percent(difference.wrong)}", f"  - {percent(level.missed)}"]
        lines += ["````", "", "````{list-table} Normal values whose mean lies beyond the line.", ":header-rows: 1", ""]
        lines += ["* - distance from the line (standard deviations)", "  - wrong word (%)"]
        lines += ["  - undecided after the last look (%)", "  - seeds in the mean"]
        for effect, rates in of_effects(parts).items():
            lines += [f"* - {effect:g}", f"  - {percent(rates.wrong)}", f"  - {percent(rates.undecided)}"]
            lines += [f"  - {rates.seeds:.0f}"]
        node = nodes.container()
        self.state.nested_parse(StringList([*lines, "````"], source=self.get_source_info()[0]), 0, node)
        return node.children


class StoryDirective(SphinxDirective):
    """`story` draws every difference that a criterion asks for, measured by its line; the content is the caption."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        story.draw(rows().values(), BUILD / "story.png")
        uri = f"/{(BUILD / 'story.png').relative_to(ROOT)}"
        lines = [f"```{{figure}} {uri}", f":alt: {story.ALT}", ":name: fig-story", "", *self.content, "```"]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.get_source_info()[0]), 0, node)
        return node.children


class SecondDirective(SphinxDirective):
    """`second` says how often the second set of seeds gives a part the word of the first look."""

    def run(self) -> list[nodes.Node]:
        found = second_words(rows().values())
        if not found:
            return [nodes.paragraph(text="No part has a second set of seeds yet.")]
        others = [
            f"{claim.id} {part.metric.replace('_', ' ')} ({first.verdict}: {measured(first.observed, first.interval)};"
            f" then {second.verdict}: {measured(second.observed, second.interval)})"
            for claim, part, first, second in found
            if first.verdict != second.verdict
        ]
        same = wilson(len(found) - len(others), len(found))
        text = (
            f"{len(found)} parts that stopped at the first look have been measured again with seeds 16 to 31 alone:"
            f" {len(found) - len(others)} get the same word ({100 * same.mean:.0f} % [{100 * same.low:.0f},"
            f" {100 * same.high:.0f}])."
        )
        return [nodes.paragraph(text=text + (f" The others: {'; '.join(others)}." if others else ""))]


class VarianceDirective(SphinxDirective):
    """`variance` tells of each part whose arms were trained again whose the variance over seeds is."""

    def run(self) -> list[nodes.Node]:
        def percent(share: list[float] | None) -> str:
            return "not asked" if share is None else "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * x for x in share))

        known = load_claims()
        lines = []
        for row in rows().values():
            units = {part.metric: part.unit for part in known[row["id"]].parts}
            for part in row["parts"]:
                if "variance" not in part:
                    continue
                of, metric = part["variance"], part["metric"]
                link = f"{{ref}}`{row['id']} <verdict-{row['id'].lower()}>`"
                shift = measured(of["shift"][0], of["shift"][1:]) if "shift" in of else "not asked"
                cells = [link, metric.replace("_", " "), f"{number(of['sd'])} {units[metric]}"]
                cells += [*(percent(of.get(name)) for name in ("hosts", "bridges", "exam")), shift]
                lines += [f"{'  ' if place else '* '}- {cell}" for place, cell in enumerate(cells)]
        if not lines:
            return [nodes.paragraph(text="No arm has been trained again yet.")]
        head = ["````{list-table}", ":header-rows: 1", ":widths: 8 24 14 14 14 14 16", "", "* - claim", "  - part"]
        head += ["  - SD of one seed", "  - hosts (%)", "  - bridge (%)", "  - exam (%)", "  - shift to the other exam"]
        node = nodes.container()
        self.state.nested_parse(StringList([*head, *lines, "````"], source=self.get_source_info()[0]), 0, node)
        return node.children


class AgreementDirective(SphinxDirective):
    """`agreement` says how the runs made for this site compare with the rows of record."""

    def run(self) -> list[nodes.Node]:
        found = agreements()
        total = Counter[str]()
        for counts in found.values():
            total.update(counts)
        if not total:
            return [nodes.paragraph(text="No chapter of this site was held to rows of record.")]
        text = (
            f"In {len(found)} chapters the runs made for this site stand in the rows of record too, {total.total():,}"
            f" values in all: {total['equal']:,} are equal to the last digit, {total['near']:,} lie within the spread"
            f" over seeds, {total['far']:,} farther off."
        )
        return [nodes.paragraph(text=text)]


class EarlierDirective(SphinxDirective):
    """`earlier` shows each part as it was judged on the hosts of earlier editions, beside what it is now."""

    def run(self) -> list[nodes.Node]:
        known = load_claims()
        lines = ["````{list-table}", ":header-rows: 1", ""]
        lines += ["* - claim", "  - part", "  - earlier", "  - n", "  - now", "  - n"]
        now = {(row["id"], part["metric"]): part for row in rows().values() for part in row["parts"]}
        for claim, _, metric, then, mean, low, high, n, _ in recorded("earlier_runs")["verdicts"]["rows"]:
            part = now.get((claim, metric))
            unit = next(p.unit for p in known[claim].parts if p.metric == metric)
            before = measured(mean, None if low is None else (low, high), unit)
            lines += [f"* - {claim}", f"  - {metric.replace('_', ' ')}", f"  - {then}: {before}", f"  - {n}"]
            lines += [
                f"  - {part['verdict']}: {measured(part['observed'], part['interval'], unit)}"
                if part
                else "  - pending",
                f"  - {part['n'] if part else ''}",
            ]
        node = nodes.container()
        self.state.nested_parse(StringList([*lines, "````"], source=self.get_source_info()[0]), 0, node)
        return node.children


class CriteriaDirective(SphinxDirective):
    """`criteria` with a thread's letter shows each of its claims with the criterion it is judged by."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        chosen = [c for c in load_claims().values() if c.id.startswith(self.arguments[0])]
        return [nodes.raw(text=claim_card(claim), format="html") for claim in chosen]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", swap)
    app.add_directive("ledger", LedgerDirective)
    app.add_directive("criteria", CriteriaDirective)
    app.add_directive("agreement", AgreementDirective)
    app.add_directive("story", StoryDirective)
    app.add_directive("rule", RuleDirective)
    app.add_directive("second", SecondDirective)
    app.add_directive("variance", VarianceDirective)
    app.add_directive("earlier", EarlierDirective)
    app.add_role("verdict", VerdictRole())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
