"""What a chapter calls: begin, its studies, claims and verdicts, tables and figures, explorers, recorded figures."""

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from bridges.benches.fingerprint import digest, label
from bridges.benches.study import PER_HOST, Outcome, Study, live_only, only_seeds, rows_of
from bridges.instruments.uncertainty import Estimate, at_confidence
from bridges.instruments.variance import NestedVariance, nested_variance
from bridges.training.checkpoints import put_back, weights
from IPython.display import Markdown
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from press import BUILD, HOSTS, ROOT, PressError, evidence, ledger, provenance
from press.chapter import parameters_of, script_of
from press.claims import Claim, load_claims
from press.data import example, of_record, recorded, reference
from press.explorer import explore
from press.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, dots, figure, lines, use_style
from press.imports import lib_files, syntax_digest
from press.provenance import PACKAGES, refusing
from press.source import show_source
from press.tables import table

__all__ = [
    "BLUE", "GREEN", "GREY", "HOSTS", "ORANGE", "PURPLE", "Markdown", "begin", "claims", "dots", "example", "explore",
    "figure", "lines", "of_record", "plt", "recorded", "reference", "refusing", "show_source", "table",
]  # fmt: skip
PROFILES = ("quick", "full")
STUDIES = BUILD / "studies"


@dataclass
class Run(provenance.Run):
    """One run of a chapter. Its sizes are attributes: `run.steps`."""

    # How many seeds of record each arm has.
    recorded: dict[str, int] = field(default_factory=dict, metadata=provenance.NO_SETTING)
    trained_again: bool = field(default=False, metadata=provenance.NO_SETTING)  # arms, over the hosts of the first look

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(self.__dict__.get("size"), name):
            return getattr(self.size, name)
        raise AttributeError(f"this chapter has no size {name!r}: give it to begin(...)")

    def study(
        self,
        name: str,
        train: Callable[..., Study | Mapping[tuple[Hashable, int], Outcome]],
        arms: Mapping[Hashable, Any],
        seeds: Sequence[int] | None = None,
        here: Collection[Hashable] | None = None,
        least: int = 0,
        **options: Any,
    ) -> Study:
        """Train arms with the seeds of this run, and set them beside the rows of record.

        What is trained is kept in `_build/studies`: the same arms, seeds and engine are not trained again. Under
        `make evidence` the rows of record are brought up to the number of seeds that are wanted, a batch of as many
        seeds as here at a time; beyond the first look only those of arms that an undecided claim asks for.

        Args:
            name: of the study, as its file in `book/evidence` has it.
            train: a bench's `train`, or a function of the chapter `(arms, seeds, **options)` that gives back a study,
                or outcomes by arm and seed.
            arms: settings by name.
            seeds: those of this run; the profile's number where nothing is given.
            here: the arms that this run trains; the others are of record alone. All where nothing is given.
            least: seeds of record that all arms are to have, whatever is decided.
            options: for `train`.

        Raises:
            PressError: for rows of record that were made with other settings, or edited.
        """
        seeds = list(range(self.seeds) if seeds is None else seeds)
        kept = {k: v for k, v in options.items() if k != "describe"}
        digests = {label(arm): digest(settings, train, _of_arm(kept, arm)) for arm, settings in arms.items()}
        trained = {arm: settings for arm, settings in arms.items() if here is None or arm in here}
        made, seconds = _made(self, name, train, trained, seeds, options, digests)
        path, again = (evidence.path_of(self.chapter, name, self.profile, again) for again in (False, True))
        if self.altered:
            return made
        if evidence.wanted():
            missing = {
                arm: settings
                for arm, settings in arms.items()
                if evidence.wanted() <= least or evidence.goes_on(self.chapter, self.profile, label(arm))
            }
            evidence.prune(path, digests)
            evidence.prune(again, digests)
            if evidence.again():
                twice = {"other_exam": True} if "other_exam" in signature(train).parameters else {}
                _top_up(self, again, train, missing, seeds, options | twice, digests, None, evidence.again())
            else:
                _top_up(
                    self, path, train, missing, seeds, options, digests, (made, seconds), max(least, evidence.wanted())
                )
            evidence.came_to(name, self.chapter, self.profile)
        rows, rows_again = evidence.read_rows(path), evidence.read_rows(again)
        out = evidence.stale(pd.concat([rows, rows_again]), digests)
        if out:
            raise PressError(
                f"{path.relative_to(ROOT)}: rows of {', '.join(out)} were made with other settings or hosts than"
                f" today's: run make evidence C={self.chapter}, or restore the settings"
            )
        if not len(rows):
            return made
        self.trained_again |= bool(len(rows_again))
        if len(made.made):
            self.agreement.append(evidence.agreement(made.made, rows))
        self.recorded |= {str(arm): int(count) for arm, count in rows.groupby("arm")["seed"].nunique().items()}
        if len(rows_again):
            rows = pd.concat([rows, _reread(rows_again)], ignore_index=True)
        return Study(made.made, rows, made.outcomes)

    def judge(self, claim: str, observed: Callable[[], Mapping[str, Any]] | None = None, **options: Any) -> Any:
        """The claim's verdict from what `observed` gives: from the rows of record where there are any.

        It is called at each look that the rows reach, by the rule of `book/criteria.md`; once more for the second set
        of seeds; and for the runs made here alone, which the card shows beside, where they are enough for an interval.
        """
        verdicts, arms = {}, set[str]()
        for look in ledger.LOOKS:
            if not observed or look > max(self.recorded.values(), default=0):
                break
            with only_seeds(range(look)) as asked, at_confidence(ledger.LOOK):
                verdict = ledger.judge(claim, dict(observed()), **options)
            if any(self.recorded.get(arm, look) < look for arm in asked):
                break  # the long runs stand between two looks
            verdicts[look], arms = verdict, asked
        if verdicts:
            verdict = ledger.first_decided(verdicts)
            if any(part.verdict == ledger.UNDECIDED for part in verdict.parts):
                evidence.undecided |= arms
            evidence.asked |= arms
            if observed and self.trained_again:
                verdict = ledger.with_variance(verdict, self._variance(observed))
        else:
            verdict = ledger.judge(claim, dict(observed()) if observed else None, **options)
        if max(self.recorded.values(), default=0) >= ledger.SECOND.stop:
            with suppress(ValueError, KeyError, PressError), only_seeds(ledger.SECOND), at_confidence(ledger.LOOK):
                second = ledger.judge(claim, dict(observed()), **options) if observed else verdict
                verdict = ledger.beside(verdict, second, "second")
        if evidence.wanted():
            evidence.came_to(claim, self.chapter, self.profile)
        if observed and self.agreement:
            with suppress(ValueError, KeyError, PressError), live_only():  # too few seeds here
                verdict = ledger.beside(verdict, ledger.judge(claim, dict(observed()), **options), "live")
        return self.note(verdict)

    def _variance(self, observed: Callable[[], Mapping[str, Any]]) -> dict[str, NestedVariance]:
        """Whose the variance of each part is, where its arms were trained again over the hosts of the first look."""
        seen = []
        for first in (0, PER_HOST, 2 * PER_HOST):
            with only_seeds(range(first, first + ledger.LOOKS[0])):
                try:
                    seen.append(dict(observed()))
                except (ValueError, KeyError, IndexError):  # not trained again, or not asked by another exam
                    break
        found = {}
        for metric, one in seen[0].items() if len(seen) > 1 else ():
            runs = [part[metric].values for part in seen] if isinstance(one, Estimate) else []
            if runs and runs[0] and len({len(values) for values in runs}) == 1 and len(set(runs[0])) > 1:
                found[metric] = nested_variance(*runs)
        return found


def begin(
    chapter: str,
    given: Mapping[str, Any],
    *,
    least: int = 2,
    profiles: Sequence[str] = PROFILES,
    hosts: Sequence[str] = (),
    **sizes: Any,
) -> Run:
    """Check a chapter's parameters before anything runs, and set figures, threads and progress bars.

    Args:
        chapter: the chapter's word.
        given: its globals, which hold its parameters.
        least: the fewest seeds from which it can say anything.
        profiles: their names, where the chapter has more than two.
        hosts: small hosts that no bench of its source names, such as `source` (for every seed) or `t5-0`: the
            workflow reads them here, to make them first.
        sizes: each a value for each profile, or one value for all; `seeds` is one of them.

    Raises:
        PressError: for an impossible value, naming what is allowed.
    """
    defaults = parameters_of(script_of(chapter))
    profile = given["profile"]
    if profile not in profiles:
        raise PressError(f"profile {profile!r} is unknown; choose from {', '.join(profiles)}")
    place = profiles.index(profile)
    own = {k: v[place] if isinstance(v, tuple) and len(v) == len(profiles) else v for k, v in sizes.items()}
    common = {k: given[k] for k in ("profile", "seeds", "device", "out")}
    run = provenance.begin(chapter, {profile: SimpleNamespace(**own)}, least=least, **common)
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    use_style()
    altered = {k for k in defaults.keys() - common.keys() if given[k] != defaults[k]}
    return Run(**{**vars(run), "altered": bool(altered)})


def claims(*ids: str) -> Any:
    """The cards of some claims."""
    cards: list[Claim] = [load_claims()[i] for i in ids]
    return _Cards(cards)


@dataclass(frozen=True)
class _Cards:
    cards: Sequence[Any]

    def _repr_html_(self) -> str:
        return "".join(card._repr_html_() for card in self.cards)


def _of_arm(options: Mapping[str, Any], arm: Hashable) -> dict[str, Any]:
    """The options as they bear on one arm: those given by arm, such as looks, only by its own."""
    return {k: v.get(arm) if isinstance(v, Mapping) and arm in v else v for k, v in options.items()}


def _train(
    run: Run,
    train: Callable[..., Any],
    arms: Mapping[Hashable, Any],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    digests: Mapping[str, str],
) -> Study:
    with refusing():
        found = train(arms, list(seeds), **options)
    study = found if isinstance(found, Study) else Study.of(found)
    outcomes = {(label(arm), seed): o for (arm, seed), o in study.outcomes.items()}
    return Study(rows_of(outcomes, digests), None, outcomes)  # type: ignore[arg-type]


def _made(
    run: Run,
    name: str,
    train: Callable[..., Any],
    arms: Mapping[Hashable, Any],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    digests: Mapping[str, str],
) -> tuple[Study, float]:
    """The runs of this profile's seeds, from what is kept or trained now and kept, and the seconds it took to train."""
    if not seeds or not arms:
        return Study(pd.DataFrame(columns=evidence.COLUMNS)), 0.0
    bench = getattr(train, "__self__", None)
    versions = [version(p) for p in PACKAGES]
    key = json.dumps(
        [{label(arm): digests[label(arm)] for arm in arms}, seeds, run.device, versions, engine(train), run.profile]
    )
    folder = STUDIES / run.chapter / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    with evidence.locked(folder):
        kept = _read(folder, bench, arms)
        if kept is None:
            begun = time.monotonic()
            study = _train(run, train, arms, seeds, options, digests)
            kept = study, time.monotonic() - begun
            _keep(folder, *kept)
    return kept


def _keep(folder: Path, study: Study, seconds: float) -> None:
    """Write rows, texts and weights beside the folder and rename."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    study.made.to_csv(partial / "rows.csv", index=False)
    texts = [[arm, seed, {k: list(v) for k, v in o.texts.items()}] for (arm, seed), o in study.outcomes.items()]
    (partial / "texts.json").write_text(json.dumps({"seconds": seconds, "texts": texts}))
    for place, outcome in enumerate(study.outcomes.values()):
        if outcome.model is not None:
            state = {k: v.contiguous().cpu() for k, v in weights(outcome.model).items()}
            save_file(state, partial / f"{place}.safetensors")
    partial.replace(folder)


def _read(folder: Path, bench: Any, arms: Mapping[Hashable, Any]) -> tuple[Study, float] | None:
    """What is kept with the seconds it took, the models made again by the bench; None where nothing is."""
    if not folder.is_dir():
        return None
    rows = pd.read_csv(folder / "rows.csv", dtype={"arm": str, "digest": str})
    by_label = {label(arm): settings for arm, settings in arms.items()}
    outcomes = {}
    kept = json.loads((folder / "texts.json").read_text())
    for place, (arm, seed, texts) in enumerate(kept["texts"]):
        path = folder / f"{place}.safetensors"
        rebuild = partial(_rebuilt, bench, by_label[arm], seed, path) if path.is_file() else None
        outcomes[arm, seed] = Outcome({}, {k: tuple(v) for k, v in texts.items()}, None, rebuild)
    return Study(rows, None, outcomes), kept["seconds"]


def _rebuilt(bench: Any, settings: Any, seed: int, path: Path) -> torch.nn.Module:
    model = bench.untrained(settings, seed)
    put_back(model, load_file(path))
    return model.eval()


def _top_up(
    run: Run,
    path: Path,
    train: Callable[..., Any],
    arms: Mapping[Hashable, Any],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    digests: Mapping[str, str],
    made: tuple[Study, float] | None,
    wanted: int,
) -> None:
    """Bring the rows of record up to `wanted` seeds, in batches of as many as this run has, its own first.

    Without `made` the rows are those of arms trained again.
    """
    size, first = len(seeds) or run.seeds, 0 if made else PER_HOST
    elsewhere = []
    for start in range(first, first + max(wanted, size), size):
        batch = list(range(start, start + size))
        release = evidence.claimed(path, batch)
        if release is None:
            elsewhere.append(batch)
            continue  # another process is at it
        try:
            rows = evidence.read_rows(path)
            there = set(zip(rows["arm"], rows["seed"], strict=True))
            missing = {arm: s for arm, s in arms.items() if any((label(arm), seed) not in there for seed in batch)}
            if not missing:
                continue
            begun = time.monotonic()
            if made and batch == list(seeds) and {label(arm) for arm in missing} <= set(made[0].made["arm"]):
                new, seconds = made[0].made, made[1]
            else:
                new = _train(run, train, missing, batch, options, digests).made
                seconds = time.monotonic() - begun
            fresh = [(arm, seed) not in there for arm, seed in zip(new["arm"], new["seed"], strict=True)]
            evidence.add(path, new[fresh], run.device, seconds)
            print(f"{run.chapter}, {path.stem}: seeds {batch} in {seconds:.0f} s", flush=True)
        finally:
            release()
    for batch in elsewhere:  # what follows in the chapter reads whole rows
        done = evidence.claimed(path, batch, wait=True)
        assert done
        done()


def _reread(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of arms trained again, those of the other exam without the readings that are still the first exam's.

    A part that sets one of these beside what was read anew would take the difference of two exams for an effect. Arms
    that no exam was asked of keep what they have for both.
    """
    other = rows["seed"] >= 2 * PER_HOST
    key = ["arm", "seed", "look", "reading"]
    first = rows[~other].assign(seed=rows["seed"] + PER_HOST).set_index(key)["value"].rename("first")
    found = rows[other].join(first, on=key)
    moved = (found["value"] != found["first"]).groupby([found["arm"], found["reading"]]).transform("any")
    unasked = rows[~other & ~rows["arm"].isin(found["arm"])]
    return pd.concat([rows[~other], found.loc[moved, rows.columns], unasked.assign(seed=unasked["seed"] + PER_HOST)])


def engine(train: Callable[..., Any]) -> str:
    """SHA-256 of the library that trains: the syntax trees of the bench's module and of all that it imports."""
    source = getattr(train, "__func__", train)
    module = source.__module__
    if not module.startswith("bridges."):
        files = sorted(
            str(f.relative_to(ROOT)) for f in (ROOT / "lib" / "bridges").rglob("*.py")
        )  # a chapter's own function may use any of them
    else:
        files = lib_files(ROOT / "lib" / Path(*module.split(".")).with_suffix(".py"))
    files = [f for f in files if not f.endswith("benches/fingerprint.py")]  # which names settings, and trains nothing
    return syntax_digest(files)
