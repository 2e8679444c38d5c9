# %% [markdown]
# # How fast, and what to freeze
#
# The log trains its connector and T5 at a rate of $5 \times 10^{-5}$, and its sentence encoder, when that is trained at
# all, at a fifth of it. It expects the most from training all three. None of these numbers was varied. This chapter varies
# them.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 4; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import torch
from bridges.connectors.resampler import ResamplerSettings
from bridges.hosts.sentence import SentenceEncoder
from bridges.instruments.translation import floors, score
from bridges.instruments.uncertainty import Estimate, mean_interval
from bridges.tasks import instructions
from bridges.training.fit import LOG_GROUPS, FitSettings, Group
from bridges.benches.pretrain import small_host
from bridges.benches.translation import (
    Recipe,
    Sentences,
    Trained,
    train_translators,
    untrained,
)
from IPython.display import Markdown
from matplotlib.figure import Figure
from press import HOSTS, ledger
from press.claims import load_claims
from press.data import recorded
from press.explorer import Explorer
from press.figures import COLOURS, draw_intervals, use_style
from press.provenance import begin
from press.source import show_source
from torch.nn.functional import cosine_similarity
from transformers.utils.logging import disable_progress_bar


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int  # of the grid of rates; half of them choose, half measure
    paired: int  # of the arms that train the sentence encoder
    long: int  # of the runs of ten times the steps
    host: str  # the size of the pretrained hosts
    steps: int  # training steps of every run but the long ones
    batch: int
    held_out: int  # validation sentences
    resampler: ResamplerSettings


SIZES = {
    "quick": Size(
        seeds=10,
        paired=8,
        long=3,
        host="quick",
        steps=32,
        batch=16,
        held_out=150,
        resampler=ResamplerSettings(width=64, latents=8, depth=2, heads=4),
    ),
    "full": Size(
        seeds=12,
        paired=8,
        long=3,
        host="full",
        steps=100,
        batch=64,
        held_out=300,
        resampler=ResamplerSettings(width=256, latents=32, depth=2, heads=8),
    ),
}
run = begin(
    "rates", SIZES, profile=profile, seeds=seeds, device=device, out=out, least=4
)
size = run.size
torch.set_num_threads(1)
disable_progress_bar()
use_style()

# %% [markdown]
# ## Symptom
#
# What the log set, and what it hoped for. It records no run of these.

# %% tags=["remove-input"]
log = recorded("encoder_training")
Markdown(
    "| "
    + " | ".join(log["rates"]["columns"])
    + " |\n|---|--:|\n"
    + "\n".join("| " + " | ".join(row) + " |" for row in log["rates"]["rows"])
    + "\n\n| sentence encoder | BLEU expected (%) |\n|---|--:|\n"
    + "\n".join(
        f"| {name} | {low:g} to {high:g} |" for name, low, high in log["rows"]
    )
)

# %% [markdown]
# ## Claim

# %% tags=["remove-input"]
claims = load_claims()
claims["A9"]

# %% tags=["remove-input"]
claims["A12"]

# %% [markdown]
# ## Mechanism
#
# AdamW divides each gradient by the root of its own mean square {cite}`loshchilov2019adamw`. A weight therefore moves by
# about the learning rate in a step, however small or large the gradient is:
#
# $$
# |\theta_T - \theta_0| \;\lesssim\; \sum_{t=1}^{T} \eta_t .
# $$ (eq-rates-path)
#
# The right side of {eq}`eq-rates-path` is a budget. With warm-up and cosine decay it is a little more than half of rate
# times steps. A connector that starts from nothing has to move its weights by about their own size.

# %% tags=["hide-input"]
RATES = (5e-5, 1.5e-4, 5e-4, 1e-3, 3e-3)
LOG_RATE = RATES[0]


def settings(lr: float, steps: int = size.steps, groups: tuple[Group, ...] = ()):
    """Part I's way of training, at a rate."""
    return FitSettings(steps, lr, size.batch, warmup=10, groups=groups)


words = instructions.tokenizer()
corpus = instructions.corpus(validation=size.held_out)
hosts = {"t5": small_host("t5", size.host, HOSTS, run.device)}
encoder = SentenceEncoder(
    small_host("bert", size.host, HOSTS, run.device), words.pad_token_id
).eval()


def prepared(texts: tuple[str, ...]) -> Sentences:
    """Sentences with the frozen encoder's vectors, and the ids that an unfrozen one reads."""
    ids = words(list(texts), padding=True, return_tensors="pt")["input_ids"]
    return Sentences(
        texts,
        encoder.encode(texts, words).to(run.device),
        instructions.labels(texts, words).to(run.device),
        ids.to(run.device),
    )


known, unseen = prepared(corpus.train), prepared(corpus.validation)
base = Recipe(settings(1e-3), size.resampler)
start = untrained(base, 0, known, hosts, None)
weights = torch.cat(
    [
        p.flatten()
        for n, p in start.connector.named_parameters()
        if "weight" in n and p.dim() > 1
    ]
)
rows = []
for lr in RATES:
    budget = [
        sum(lr * settings(lr, steps).rate(t) for t in range(steps))
        for steps in (size.steps, 10 * size.steps)
    ]
    rows.append(f"| {lr:g} | " + " | ".join(f"{b:.2g}" for b in budget) + " |")
Markdown(
    f"| rate | budget in {size.steps} steps | in {10 * size.steps} steps |\n|--:|--:|--:|\n"
    + "\n".join(rows)
    + f"\n\nBeside it: the connector's weights start with a standard deviation of {weights.std():.2g}."
)

# %% [markdown]
# Which parameters learn, how fast and from when is said by groups, each a prefix of names:

# %% tags=["remove-input"]
show_source(Group)

# %% [markdown]
# ## Experiment
#
# The sentence encoder here is a small BERT, mean-pooled, that was taught on the spot to find two sentences as alike as the
# book's own embedding does; frozen, it gives the vectors of all runs below. Vectors are standardised throughout, so that
# the [whisper of the chapter before](collapse.ipynb) plays no part.
#
# ### The rate
#
# Five rates on one grid, from the log's upwards. On the first half of the seeds the best is chosen; what is reported of it
# comes from the other half.

# %%
floor = floors(
    corpus.train, known.vectors.cpu(), corpus.validation, unseen.vectors.cpu()
)


@dataclass(frozen=True)
class Judged:
    """A trained translator and what it says of the held-out sentences."""

    run: Trained
    bleu: float
    distinct: float  # percent
    said: tuple[str, ...]


@torch.no_grad()
def judged(found: Trained) -> Judged:
    """Judge one."""
    said = words.batch_decode(
        found.model.generate(unseen.inputs(found.recipe)), skip_special_tokens=True
    )
    scores = score(said, corpus.validation)
    return Judged(found, scores.bleu, 100 * scores.distinct, tuple(said))


def train(arms: dict[str, Recipe], count: int) -> dict[tuple[str, int], Judged]:
    """Every arm over `count` seeds."""
    cells = [(name, seed) for name in arms for seed in range(count)]
    found = train_translators(
        [(arms[name], seed) for name, seed in cells], known, hosts, encoder
    )
    return dict(zip(cells, map(judged, found), strict=True))


grid = train(
    {f"{lr:g}": replace(base, fit=settings(lr)) for lr in RATES}, run.seeds
)
choosing = range(run.seeds // 2)
measuring = range(run.seeds // 2, run.seeds)


def mean_over(found, name: str, chosen: range, part: str = "bleu") -> Estimate:
    """Mean over some seeds of one reading of an arm."""
    return mean_interval([getattr(found[name, s], part) for s in chosen])


best = max(RATES, key=lambda lr: mean_over(grid, f"{lr:g}", choosing).mean)
long = train(
    {
        f"{lr:g}": replace(base, fit=settings(lr, 10 * size.steps))
        for lr in (LOG_RATE, best)
    },
    min(size.long, run.seeds),
)


# %% tags=["hide-input"] mystnb={"figure": {"caption": "BLEU against the learning rate, each small dot a seed, with means and 95 % intervals; beside it the log's rate and the best one at ten times the steps. Dotted: the best constant sentence and the nearest training sentence.", "name": "fig-rates-grid"}, "image": {"alt": "Plot of BLEU against learning rate on a logarithmic axis. At equal steps BLEU rises from near the constant floor at the log's rate to a plateau at rates from 5e-4 on. Two further points at ten times the steps lie higher; the one at the log's rate only reaches the plateau of the short runs."}}
figure, axes = plt.subplots(figsize=(7.2, 3.6))
for lr in RATES:
    axes.plot(
        [lr * 0.93] * run.seeds,
        [grid[f"{lr:g}", s].bleu for s in range(run.seeds)],
        ".",
        color=COLOURS["grey"],
        alpha=0.6,
    )
draw_intervals(
    axes,
    RATES,
    [mean_over(grid, f"{lr:g}", range(run.seeds)) for lr in RATES],
    fmt="o-",
    color=COLOURS["orange"],
    capsize=4,
    label=f"{size.steps} steps",
)
repeats = range(min(size.long, run.seeds))
draw_intervals(
    axes,
    [LOG_RATE, best],
    [mean_over(long, f"{lr:g}", repeats) for lr in (LOG_RATE, best)],
    fmt="s--",
    color=COLOURS["blue"],
    capsize=4,
    label=f"{10 * size.steps} steps",
)
for at in (floor.constant, floor.retrieval):
    axes.axhline(at, color="black", linewidth=0.8, linestyle=":")
axes.set(xscale="log", xlabel="learning rate", ylabel="BLEU")
axes.legend()
plt.show()


# %% tags=["hide-input"]
def shortfall(found, chosen: range) -> Estimate:
    """BLEU at the best rate minus BLEU at the log's, paired."""
    return mean_interval(
        [
            found[f"{best:g}", s].bleu - found[f"{LOG_RATE:g}", s].bleu
            for s in chosen
        ]
    )


lost, lost_long = shortfall(grid, measuring), shortfall(long, repeats)
Markdown(
    f"The best rate on seeds {choosing.start} to {choosing.stop - 1} is {best:g}. On the other {len(measuring)} it gains"
    f" {lost} BLEU on the log's rate after {size.steps} steps; at ten times the steps, {lost_long} over {len(repeats)}"
    f" seeds, where the best rate ends with {mean_over(long, f'{best:g}', repeats, 'distinct')} % distinct outputs and the"
    f" log's with {mean_over(long, f'{LOG_RATE:g}', repeats, 'distinct')} %. Floors: {floor}."
    + (
        " It stands at the end of the grid: a still higher one may do better."
        if best == max(RATES)
        else ""
    )
)

# %% [markdown]
# ### The sentence encoder
#
# The same recipe at that best rate, with the encoder frozen, trained from the start at the same rate, at a fifth of it,
# and frozen for the first third of the steps. A first run had five seeds for these arms, and its interval for training
# from the start lay on both sides of the criterion's line; the arms have had eight since.

# %%
third = size.steps // 3
ENCODER = {
    "frozen": replace(base, fit=settings(best)),
    "trained": replace(base, fit=settings(best), unfrozen=True),
    "at a fifth": replace(
        base, fit=settings(best, groups=LOG_GROUPS), unfrozen=True
    ),
    "after a third": replace(
        base,
        fit=settings(best, groups=(Group("encoder.", start=third),)),
        unfrozen=True,
    ),
}
pairs = range(min(size.paired, run.seeds))
trained = {("frozen", s): grid[f"{best:g}", s] for s in pairs}  # trained already
trained |= train({n: r for n, r in ENCODER.items() if n != "frozen"}, len(pairs))


def kept(found: Trained) -> float:
    """Mean cosine between a sentence's vector before the training and after it."""
    if found.model.encoder is None:
        return 1.0
    with torch.no_grad():
        after = found.model.encoder(unseen.ids)
    return cosine_similarity(after, unseen.vectors).mean().item()


# %% tags=["hide-input"]
cosines = {
    name: mean_interval([kept(trained[name, s].run) for s in pairs])
    for name in ENCODER
}


def gained(name: str, over: str) -> Estimate:
    """BLEU of one arm minus another's, paired."""
    return mean_interval(
        [trained[name, s].bleu - trained[over, s].bleu for s in pairs]
    )


Markdown(
    "| sentence encoder | BLEU | distinct outputs (%) | gain over frozen | cosine of its vectors before and after |\n"
    "|---|---|---|---|---|\n"
    + "\n".join(
        f"| {name} | {mean_over(trained, name, pairs)} | {mean_over(trained, name, pairs, 'distinct')} |"
        f" {'' if name == 'frozen' else gained(name, 'frozen')} | {cosines[name]} |"
        for name in ENCODER
    )
    + f"\n\nMean [95 % interval] over {len(pairs)} seeds, rate {best:g}, {size.steps} steps. Floors of BLEU: {floor}."
)

# %% [markdown]
# (verdict-a9)=
# (verdict-a12)=
# ## Verdict

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "A9",
        {
            "shortfall_at_log_rate": lost,
            "gain_of_lower_encoder_rate": gained("at a fifth", "trained"),
        },
    )
)

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "A12",
        {
            "unfrozen_gain": gained("trained", "frozen"),
            "staged_gain": gained("after a third", "frozen"),
        },
    )
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# The budget of this book is short, and a short run favours a high rate; the log trained for thirty epochs. But the budget
# of {eq}`eq-rates-path` is a product: ten times the steps at the log's rate bring what a tenth of them bring at a higher
# one, and at ten times the steps the higher rate is still ahead. Nothing here says that $10^{-3}$ is right
# elsewhere. It says that a rate taken over from fine-tuning a whole pretrained model, where weights need to move little,
# is a poor guess for a connector that starts from nothing, and that a grid of five short runs would have shown it.
#
# Training the sentence encoder along is a smaller matter than any of this, in this setting where its vectors hold the
# sentence to begin with. An encoder whose vectors lack something could gain more. The probe of
# [the chapter before](collapse.ipynb) tells which case one has.

# %% tags=["hide-input"]
smallest = {
    name: (e.high - e.low) / 2
    for name, e in {
        "a lower rate": gained("at a fifth", "trained"),
        "training it": gained("trained", "frozen"),
        "training it late": gained("after a third", "frozen"),
    }.items()
}
Markdown(
    "With these seeds an effect had to exceed "
    + ", ".join(f"{half:.1f} BLEU ({name})" for name, half in smallest.items())
    + " to be told from none."
)

# %% [markdown]
# ## Tweak it
#
# Move the slider through the rates. The picture shows the training loss of every seed at that rate over those of all
# others, and below it what seed 0 says for a sentence it has not seen. In a live kernel, choose another sentence.


# %% tags=["hide-input"]
def frame(lr: float, sentence: str) -> tuple[Figure, str]:
    """Training curves at one rate, and what the translator then says."""
    figure = Figure(figsize=(7.2, 3.4))
    axes = figure.subplots()
    for (name, _), found in grid.items():
        chosen = name == f"{lr:g}"
        axes.plot(
            found.run.losses,
            "-",
            color=COLOURS["orange" if chosen else "grey"],
            alpha=0.9 if chosen else 0.15,
            linewidth=1.4 if chosen else 0.8,
            zorder=2 if chosen else 1,
        )
    said = grid[f"{lr:g}", 0].said[corpus.validation.index(sentence)]
    mean = mean_over(grid, f"{lr:g}", range(run.seeds)).mean
    axes.set(
        xlabel="training step",
        ylabel="loss (nats per token)",
        title=f"rate {lr:g}: BLEU {mean:.1f}",
    )
    figure.supxlabel(
        f"right: {sentence}\nsaid: {said}", fontsize=9, x=0.02, ha="left"
    )
    return figure, (
        f"Training loss against step; the curves at rate {lr:g} stand out, mean BLEU {mean:.1f}. For '{sentence}' the"
        f" translator says '{said}'."
    )


explorer = Explorer(
    "learning rate",
    {f"{lr:g}": lr for lr in RATES},
    frame,
    choices={"sentence": list(corpus.validation[:8])},
)
explorer

# %% [markdown]
# ## Try it on yours
#
# Groups go by the names of parameters, so they fit any module. This prints what each part of a model would learn at:

# %%
mine = trained["at a fifth", 0].run.model  # yours
plan = FitSettings(steps=1000, lr=1e-3, groups=LOG_GROUPS)
parts = {
    name.split(".")[0]: plan.lr * plan.group(name).rate
    for name, _ in mine.named_parameters()
}
Markdown(
    "| part | rate |\n|---|--:|\n"
    + "\n".join(f"| `{p}` | {r:g} |" for p, r in parts.items())
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    best_rate=best,
    shortfall_at_ten_times_the_steps=lost_long,
    distinct_at_ten_times_the_steps=mean_over(
        long, f"{best:g}", repeats, "distinct"
    ),
    floor_constant=floor.constant,
    floor_retrieval=floor.retrieval,
    cosine_kept_at_full_rate=cosines["trained"],
    cosine_kept_at_a_fifth=cosines["at a fifth"],
)
run.close()
