# %% [markdown]
# # How fast, and what to freeze
#
# The log trains its connector and T5 at a rate of $5 \times 10^{-5}$, and its sentence encoder, when that is trained at
# all, at a fifth of it. It expects the most from training all three, and varied none of these numbers. This chapter
# varies them. The log's rate is far too low for a connector that starts from nothing, in a short run and in one ten times
# as long. Whether training the encoder pays depends on that rate: where the rest learns too slowly it helps a little, at
# a good rate it buys nothing worth having, and at a higher one it costs.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import pandas as pd
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

# Pairs: quick, full profile.
run = begin("rates", globals(), seeds=(2, 12), others=(0, 6),  # seeds trained here of the arms that decide no claim
    host=("quick", "full"),  # the size of the pretrained hosts
    held_out=(150, 300),  # validation sentences
    steps=(32, 100), batch=(16, 64), width=(64, 256),  # of the resampler
    latents=(8, 32), heads=(4, 8))  # fmt: skip

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
# times steps, and it is the most that a weight can move if its gradient always points to one side. Where the sign
# changes, steps cancel, and it moves less. Clipping cannot stretch the budget either: a gradient that is scaled down is
# divided by a root that is scaled down with it.
#
# Fine-tuning moves the weights of a trained model by little, since they are near a good place already, and a rate of
# $5 \times 10^{-5}$ is common there. A connector that starts from nothing has to move its weights by about their own
# size. How many steps that takes can be read off before any training: divide the one by the other.

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
# Which parameters learn, how fast and from when is said by groups, each a prefix of names. A part that is frozen until
# `start` counts AdamW's steps from there, so that its first moves are as large as those of any other part were:

# %% tags=["remove-input"]
show_source(Group)

# %% [markdown]
# ## Experiment
#
# The sentence encoder here is a small BERT, mean-pooled, that was taught to find two sentences as alike as the book's own
# embedding does; frozen, it gives the vectors of all runs below. It is one for all seeds, while each seed has a T5 of its
# own. Vectors are standardised throughout, so that the [whisper of the chapter before](collapse.ipynb) plays no part.
#
# Five rates on one grid, from the log's upwards. Every other seed chooses the best; what is reported of it comes from the
# rest, since a rate that was picked for its score would be flattered by the luck that helped to pick it. Beside the grid
# stand the same rates at ten times the steps, and one rate above it, which shows whether the grid ends too early.

# %%
FROZEN, LONG = "frozen", "frozen, ten times the steps"
grid = {(FROZEN, lr): at(lr) for lr in RATES}
beside = {(FROZEN, HIGHER): at(HIGHER)} | {(LONG, lr): at(lr, TENFOLD) for lr in (*RATES, HIGHER)}
study = run.study("rates", bench.train, grid)
study |= run.study("beside the grid", bench.train, beside, range(run.others))

# %% [markdown]
# The encoder's arms take the same recipe and train the encoder too: from the start at the common rate, at a fifth of it
# as in the log, and from the second third of the steps on, as the log would unfreeze it in epoch 10 of 30. They are
# trained at every rate of the grid, and judged at the one that is chosen; this page trains them anew at that one alone.
# How far the encoder's vectors have moved is read off beside the BLEU: a cosine of 1 says that its pretraining is where
# it was.

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
best = Tuned(study, RATES, "bleu").chosen(FROZEN)  # the rate that every other seed chooses
_, measuring = study.halves(*grid)
here = None if run.others else [(way, best[1]) for way in WAYS]
study |= run.study("encoder", bench.train, highest, here=here, read=kept)
study |= run.study("encoder at lower rates", bench.train, lower, range(run.others or run.seeds), here=here, read=kept)

# %% [markdown]
# What the rate does, at two budgets:


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: BLEU against the learning rate, at two numbers of steps: means over seeds with their 95 % interval, single seeds thin; the vertical line is the log's rate. Dotted: the best constant sentence and the nearest training sentence. Right: what training the sentence encoder gains over keeping it frozen, at each rate; the dotted lines are zero and the criterion's 2 BLEU.", "name": "fig-rates-grid"}, "image": {"alt": "Left, two curves of BLEU against the rate. The short runs start near the constant floor at the log's rate, rise to a plateau between 1e-3 and 3e-3 and fall at 1e-2. The runs of ten times the steps lie above them throughout and start at the log's rate at about the height of that plateau; they too are highest between 1e-3 and 3e-3. Right, three curves of gains over frozen that rise from near zero, fall again and end below zero at 3e-3. The encoder trained from the start has the highest point, at 1.5e-4, and the lowest, at 3e-3; the other two are highest at 5e-4, near 1."}}
def by_rate(way: str, over: str = "") -> pd.DataFrame:
    """BLEU of an arm, or its gain over another, by rate (rows) and seed (columns)."""
    rates = [lr for lr in (*RATES, HIGHER) if (way, lr) in study]
    bleu = {lr: study.values((way, lr), "bleu") - (study.values((over, lr), "bleu") if over else 0) for lr in rates}
    return pd.DataFrame(bleu).T


left, right = figure(columns=2, height=3.7, sharey=False)
floors = (bench.floors.constant, bench.floors.retrieval)
curves = {f"{run.steps} steps": by_rate(FROZEN), f"{TENFOLD} steps": by_rate(LONG)}
lines(left, curves, at=floors, xscale="log", xlabel="learning rate", ylabel="BLEU")
left.axvline(LOG_RATE, color=GREY, lw=1)
left.legend(fontsize=8)
COLOUR = dict(zip(WAYS, (GREEN, PURPLE, BLUE), strict=True))
lines(right, {way: by_rate(way, FROZEN) for way in WAYS}, colour=COLOUR, at=(0, 2), thin=False, xscale="log")
right.set(xlabel="learning rate", ylabel="gain in BLEU over frozen")
right.legend(fontsize=8)
plt.show()

# %% tags=["hide-input"]
table(
    "learning rate | budget | first map moved by, seed 0 (% of its size) | BLEU | budget, ten times the steps | BLEU",
    (
        (
            f"{lr:g}" + (" (chosen)" if lr == best[1] else ""),
            lr * path[run.steps],
            100 * float((study.model((FROZEN, lr), 0).connector[1].into.weight.detach() - start).norm() / start.norm()),
            study.mean((FROZEN, lr), "bleu", measuring),
            lr * path[TENFOLD],
            study.mean((LONG, lr), "bleu", measuring),
        )
        for lr in RATES
    ),
    f"Mean [95 % interval] over the {len(measuring)} measuring seeds. Floors of BLEU: {bench.floors}.",
)

# %% [markdown]
# And what training the encoder does, at the chosen rate:

# %% tags=["hide-input"]
at_best = [best, *((way, best[1]) for way in WAYS)]
table(
    "sentence encoder | n | BLEU | gain over frozen | cosine of its vectors before and after",
    (
        (
            arm[0],
            len(study.seeds(arm)),
            study.mean(arm, "bleu"),
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
#
# The rate is the one that the rows of record chose, for this page's own runs too. Of those the second card speaks alone:
# what the first one compares are measuring seeds, and of these the page trains too few for an interval.

# %% tags=["hide-input"]
AT_FIFTH, TRAINED, STAGED = ((way, best[1]) for way in ("at a fifth", "trained", "after a third"))
run.judge(
    "A9",
    lambda: {
        "shortfall_at_log_rate": study.gain(best, (FROZEN, LOG_RATE), "bleu", measuring),
        "gain_of_lower_encoder_rate": study.gain(AT_FIFTH, TRAINED, "bleu"),
    },
)

# %% tags=["hide-input"]
run.judge(
    "A12", lambda: {"unfrozen_gain": study.gain(TRAINED, best, "bleu"), "staged_gain": study.gain(STAGED, best, "bleu")}
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# ### The path, more than the rate

# %% tags=["hide-input"]
long_gain = study.gain((LONG, best[1]), (LONG, LOG_RATE), "bleu", measuring)
Markdown(
    f"On the measuring seeds the rate of {best[1]:g} gains {study.gain(best, (FROZEN, LOG_RATE), 'bleu', measuring)} BLEU on"
    f" the log's after {run.steps} steps, and {long_gain} after {TENFOLD}."
)

# %% [markdown]
# So the log's rate is not wrong for good, it is slow: ten times the steps carry it about as far as the best short run,
# and a run of the same length at a higher rate stays ahead. Rate and steps trade against each other as the budget says,
# with something left over for the longer run: ten times the log's rate at once has about the budget of ten times the
# steps, and ends a few points lower. There is an upper end too. Beyond the plateau of {numref}`fig-rates-grid` BLEU
# falls, at both lengths, and over the plateau itself the choice of rate matters little.
#
# None of this says that $10^{-3}$ is right elsewhere. It says that a rate taken over from fine-tuning is a poor guess for
# a connector that starts from nothing, and that a grid of five short runs shows it.
#
# ### The encoder is a question of the rate
#
# The right panel of {numref}`fig-rates-grid` has the log's hope and its refutation in one curve. At a rate that is too
# low the frozen translator has hardly begun to listen, and another part that moves is a help. At a rate that suits the
# connector, the same training moves the encoder's vectors away from what they were taught, as the last table shows, and
# an effect of two BLEU is excluded, from the start or after a third of the steps; at the top of the grid it costs about
# one. The log's fifth does what it is meant to do: it keeps the vectors where they were, and never costs anything clear.
# It is worth no more than the full rate, and half a point more than freezing. That is less than two seeds of one recipe
# differ by, and freezing needs no gradients through the encoder.
#
# That holds where the vectors contain the sentence to begin with. An encoder whose vectors lack something could gain
# more. The probe of [the chapter before](collapse.ipynb) tells which case one has.

# %% [markdown]
# ## Tweak it
#
# Move the slider through the rates. Each pair of bars is a word of a sentence that the translator has not seen: the
# probability it gives to that word, once with the sentence's own vector, once with another's. Where both are equal, the
# word is known from habit. In a live kernel, choose another sentence.


# %% tags=["hide-input"]
def frame(axes, lr: float, sentence: str) -> str:
    """How sure seed 0 is of each word of a sentence, given its vector or another's."""
    place = bench.unseen.texts.index(sentence)
    labels = bench.tokenizer([sentence] * 2, return_tensors="pt")["input_ids"].to(run.device)
    model = study.model((FROZEN, lr), 0)
    with torch.no_grad():
        inputs = model.host_inputs(bench.unseen.vectors[[place, place - 1]])
        sure = model.host(**inputs, labels=labels).logits.softmax(-1).gather(2, labels[..., None])[:, :-1, 0]
    bars = pd.DataFrame(100 * sure.cpu().numpy().T, sentence.split(), ["its own vector", "another's vector"])
    bars.plot.bar(ax=axes, color=[ORANGE, GREY], rot=35, ylim=(0, 130), ylabel="given to the right word (%)")
    said = f"At rate {lr:g} it says: {study.texts((FROZEN, lr), 0, 'said')[place]}"
    axes.set_title(said, fontsize=10)
    own, other = bars.mean()
    return f"Bars for the words of '{sentence}': {own:.0f} % on average with its own vector, {other:.0f} % with another's. {said}."


explore("learning rate", RATES, frame, height=3.4, sentence=bench.unseen.texts[:8])

# %% [markdown]
# ## Try it on yours
#
# Groups go by the names of parameters, so they fit any module. This prints what each part of a model would learn at:

# %%
mine = bench.untrained(encoder["at a fifth", LOG_RATE], seed=0)  # yours
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
    **{f"cosine kept: {arm[0]}": study.mean(arm, "kept") for arm in at_best[1:]},
)
run.close()
