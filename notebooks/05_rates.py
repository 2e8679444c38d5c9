# %% [markdown]
# # How fast, and what to freeze
#
# The log trains its connector and T5 at a rate of $5 \times 10^{-5}$, and its sentence encoder, when that is trained at
# all, at a fifth of it. It expects the most from training all three, and varied none of these numbers. This chapter
# varies them.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 4; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import pandas as pd  # noqa: I001
import torch
from bridges.benches import translation
from bridges.benches.study import Tuned
from bridges.benches.translation import Recipe
from bridges.connectors.resampler import ResamplerSettings
from bridges.training.fit import LOG_GROUPS, FitSettings, Group
from press.book import (
    BLUE, GREEN, GREY, HOSTS, ORANGE, PURPLE, Markdown, begin, claims, explore, figure, lines, plt, recorded,
    show_source, table,
)  # fmt: skip
from torch.nn.functional import cosine_similarity

run = begin(
    "rates",
    globals(),
    least=4,
    #      quick, full
    seeds=(4, 12),
    host=("quick", "full"),  # the size of the pretrained hosts
    held_out=(150, 300),  # validation sentences
    steps=(32, 100),
    batch=(16, 64),
    width=(64, 256),  # of the resampler
    latents=(8, 32),
    heads=(4, 8),
)

# %% [markdown]
# ## Symptom
#
# What the log set, and what it hoped for. It records no run of these.

# %% tags=["remove-input"]
log = recorded("encoder_training")
hopes = ", ".join(f"{low:g} to {high:g} with it {name}" for name, low, high in log["rows"])
table("part | learning rate", log["rates"]["rows"], f"BLEU that the log expects (%): {hopes}.")

# %% [markdown]
# ## Claim

# %% tags=["remove-input"]
claims("A9", "A12")

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
# times steps, and it is the most that a weight can move if its gradient always points to one side. A connector that
# starts from nothing has to move its weights by about their own size.

# %%
RATES = (5e-5, 1.5e-4, 5e-4, 1e-3, 3e-3)  # the criterion's grid
LOG_RATE, HIGHER, TENFOLD = RATES[0], 1e-2, 10 * run.steps
shape = ResamplerSettings(run.width, run.latents, depth=2, heads=run.heads)
bench = translation.bench(HOSTS, run.device, size=run.host, encoder="bert", held_out=run.held_out)


def at(lr: float, steps: int = run.steps, groups: tuple[Group, ...] = (), **changes) -> Recipe:
    """A perceiver into T5 at a rate, its input standardised."""
    return Recipe(FitSettings(steps, lr, run.batch, warmup=10, groups=groups), shape, **changes)


path = {n: sum(at(1.0, n).fit.rate(t) for t in range(n)) for n in (run.steps, TENFOLD)}  # the budget at a rate of 1

# %% tags=["remove-input"]
start = bench.untrained(at(LOG_RATE), seed=0).connector[1].into.weight.detach()
Markdown(
    f"The connector's first map starts with weights of standard deviation {start.std():.2g}. The budget of {run.steps}"
    f" steps at the log's rate is {LOG_RATE * path[run.steps]:.2g}, at {RATES[-1]:g} it is {RATES[-1] * path[run.steps]:.2g}."
)

# %% [markdown]
# Which parameters learn, how fast and from when is said by groups, each a prefix of names:

# %% tags=["remove-input"]
show_source(Group)

# %% [markdown]
# ## Experiment
#
# The sentence encoder here is a small BERT, mean-pooled, that was taught to find two sentences as alike as the book's own
# embedding does; frozen, it gives the vectors of all runs below. It is one for all seeds, while each seed has a T5 of its
# own. Vectors are standardised throughout, so that the [whisper of the chapter before](collapse.ipynb) plays no part.
#
# ### The rate
#
# Five rates on one grid, from the log's upwards. Every other seed chooses the best; what is reported of it comes from the
# rest. Beside the grid stand the same rates at ten times the steps, and one rate above it.

# %%
FROZEN, LONG = "frozen", "frozen, ten times the steps"
grid = {(FROZEN, lr): at(lr) for lr in RATES}
beside = {(FROZEN, HIGHER): at(HIGHER)} | {(LONG, lr): at(lr, TENFOLD) for lr in (*RATES, HIGHER)}
study = run.study("rates", bench.train, grid)
study |= run.study("beside the grid", bench.train, beside, seeds=())

# %% [markdown]
# The encoder's arms take the same recipe and train the encoder too: from the start at the common rate, at a fifth of it,
# and from the second third of the steps on. How far its vectors have moved is read off beside the BLEU.

# %%
WAYS = {
    "trained": Group("encoder."),
    "at a fifth": LOG_GROUPS[0],
    "after a third": Group("encoder.", start=run.steps // 3),
}


def kept(translator, recipe: Recipe) -> dict[str, float]:
    """Mean cosine between a held-out sentence's vector before the training and after it."""
    with torch.no_grad():
        after = translator.encoder(bench.unseen.ids)
    return {"kept": cosine_similarity(after, bench.unseen.vectors).mean().item()}


encoder = {(way, lr): at(lr, groups=(group,), unfrozen=True) for way, group in WAYS.items() for lr in RATES}
highest = {arm: recipe for arm, recipe in encoder.items() if arm[1] == RATES[-1]}
lower = {arm: recipe for arm, recipe in encoder.items() if arm not in highest}
study |= run.study("encoder", bench.train, highest, range(run.seeds // 2), read=kept)
study |= run.study("encoder at lower rates", bench.train, lower, seeds=(), read=kept)
tuned = Tuned(study, RATES, "bleu")  # the rate that every other seed chooses

# %% [markdown]
# What the rate does, at two budgets:


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: BLEU against the learning rate, at two numbers of steps: means over seeds with their 95 % interval, single seeds thin; the vertical line is the log's rate. Dotted: the best constant sentence and the nearest training sentence. Right: what training the sentence encoder gains over keeping it frozen, at each rate; the dotted lines are zero and the criterion's 2 BLEU.", "name": "fig-rates-grid"}, "image": {"alt": "Left, BLEU rises with the rate."}}
def by_rate(way: str, over: str = "") -> pd.DataFrame:
    """BLEU of an arm, or its gain over another, by rate (rows) and seed (columns)."""
    rates = [lr for lr in (*RATES, HIGHER) if (way, lr) in study]
    bleu = {lr: study.values((way, lr), "bleu") - (study.values((over, lr), "bleu") if over else 0) for lr in rates}
    return pd.DataFrame(bleu).T


left, right = figure(columns=2, height=3.7, sharey=False)
floors = (bench.floors.constant, bench.floors.retrieval)
curves = {f"{run.steps} steps": by_rate(FROZEN), f"{TENFOLD} steps": by_rate(LONG)}
lines(left, {n: c for n, c in curves.items() if len(c)}, at=floors, xscale="log", xlabel="learning rate", ylabel="BLEU")
left.axvline(LOG_RATE, color=GREY, lw=1)
left.legend(fontsize=8)
COLOUR = dict(zip(WAYS, (GREEN, PURPLE, BLUE), strict=True))
lines(right, {way: by_rate(way, FROZEN) for way in WAYS}, colour=COLOUR, at=(0, 2), thin=False, xscale="log")
right.set(xlabel="learning rate", ylabel="gain in BLEU over frozen")
right.legend(fontsize=8)
plt.show()

# %% tags=["hide-input"]
best = tuned.chosen(FROZEN)
choosing, measuring = study.halves(*grid)
table(
    "learning rate | budget | first map moved by, seed 0 (% of its size) | BLEU | budget, ten times the steps | BLEU",
    (
        (
            f"{lr:g}" + (" (chosen)" if lr == best[1] else ""),
            lr * path[run.steps],
            100 * float((study.model((FROZEN, lr), 0).connector[1].into.weight.detach() - start).norm() / start.norm()),
            study.mean((FROZEN, lr), "bleu", measuring),
            lr * path[TENFOLD],
            study.mean((LONG, lr), "bleu", measuring) if (LONG, lr) in study else None,
        )
        for lr in RATES
    ),
    f"Mean [95 % interval] over the {len(measuring)} measuring seeds. Floors of BLEU: {bench.floors}.",
)

# %% [markdown]
# And what training the encoder does, at the chosen rate:

# %% tags=["hide-input"]
at_best = [arm for arm in (best, *((way, best[1]) for way in WAYS)) if arm in study]
table(
    "sentence encoder | n | BLEU | distinct outputs (%) | gain over frozen | cosine of its vectors before and after",
    (
        (
            arm[0],
            len(study.seeds(arm)),
            study.mean(arm, "bleu"),
            study.mean(arm, "distinct"),
            *((study.gain(arm, best, "bleu"), study.mean(arm, "kept")) if arm != best else (None, None)),
        )
        for arm in at_best
    ),
    f"Mean [95 % interval] over n seeds, rate {best[1]:g}, {run.steps} steps.",
)

# %% [markdown]
# (verdict-a9)=
# (verdict-a12)=
# ## Verdict


# %% tags=["hide-input"]
def gain(way: str, over: str):
    """BLEU of one arm over another at the chosen rate."""
    rate = tuned.chosen(FROZEN)[1]
    return study.gain((way, rate), (over, rate), "bleu")


run.judge(
    "A9",
    lambda: {
        "shortfall_at_log_rate": study.gain(tuned.chosen(FROZEN), (FROZEN, LOG_RATE), "bleu", study.halves(*grid)[1]),
        "gain_of_lower_encoder_rate": gain("at a fifth", "trained"),
    },
)

# %% tags=["hide-input"]
run.judge("A12", lambda: {"unfrozen_gain": gain("trained", FROZEN), "staged_gain": gain("after a third", FROZEN)})

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# The budget of {eq}`eq-rates-path` is a product: ten times the steps at the log's rate bring about what a tenth of them
# bring at a tenfold rate. A rate taken over from fine-tuning a whole pretrained model, where weights need to move
# little, is a poor guess for a connector that starts from nothing, and a grid of five short runs shows it.

# %% [markdown]
# ## Tweak it
#
# Move the slider through the rates. Each pair of bars is a word of a sentence that the translator has not seen: the
# probability it gives to that word, once with the sentence's own vector, once with another's. Where both are equal, the
# word is known from habit. In a live kernel, choose another sentence.


# %% tags=["hide-input"]
def frame(axes, lr: float, sentence: str) -> str:
    """How sure seed 0 is of each word of a sentence, given its vector or the next one's."""
    place = bench.unseen.texts.index(sentence)
    labels = bench.tokenizer([sentence] * 2, return_tensors="pt")["input_ids"].to(run.device)
    vectors = bench.unseen.vectors[[place, (place + 1) % len(bench.unseen.texts)]]
    model = study.model((FROZEN, lr), 0)
    with torch.no_grad():
        logits = model.host(**model.host_inputs(vectors), labels=labels).logits
    right, wrong = logits.softmax(-1).gather(2, labels[..., None])[..., 0][:, :-1].cpu()
    places = torch.arange(len(right))
    axes.bar(places - 0.2, 100 * right, 0.4, color=ORANGE, label="its own vector")
    axes.bar(places + 0.2, 100 * wrong, 0.4, color=GREY, label="another's vector")
    axes.set_xticks(places, sentence.split(), rotation=35, ha="right")
    axes.set(ylabel="given to the right word (%)", ylim=(0, 103), title=f"rate {lr:g}")
    axes.legend(fontsize=8)
    said = study.texts((FROZEN, lr), 0, "said")[place]
    axes.figure.supxlabel(f"said: {said}", fontsize=9)
    return (
        f"At rate {lr:g} the words of '{sentence}' get {100 * right.mean():.0f} % on average with the sentence's own vector,"
        f" {100 * wrong.mean():.0f} % with another's. The translator says '{said}'."
    )


explore("learning rate", RATES, frame, height=3.4, sentence=bench.unseen.texts[:8])

# %% [markdown]
# ## Try it on yours
#
# Groups go by the names of parameters, so they fit any module. This prints what each part of a model would learn at:

# %%
mine = study.model(("at a fifth", RATES[-1]), 0)  # yours
plan = FitSettings(steps=1000, lr=1e-3, groups=LOG_GROUPS)
parts = {name.split(".")[0]: plan.lr * plan.group(name).rate for name, _ in mine.named_parameters()}
table("part | rate", ((f"`{part}`", rate) for part, rate in parts.items()))

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    best_rate=best[1],
    floor_constant=bench.floors.constant,
    floor_retrieval=bench.floors.retrieval,
    **{f"cosine kept: {way}": study.mean((way, best[1]), "kept") for way in WAYS if (way, best[1]) in study},
    **{
        f"gain over the log's rate at {n} steps": study.gain((w, best[1]), (w, LOG_RATE), "bleu", measuring)
        for n, w in ((run.steps, FROZEN), (TENFOLD, LONG))
        if (w, LOG_RATE) in study
    },
)
run.close()
