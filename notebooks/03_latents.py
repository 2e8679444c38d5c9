# %% [markdown]
# # What 64 latents can say about one vector
#
# When the first connectors failed, the log replaced them by a Flamingo-style resampler: 64 learned latents that attend to
# the sentence vector, in two layers with residuals. More tokens, more depth, more capacity. The score did not move. This
# chapter asks what latents can do when there is a single vector to attend to.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import math
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import torch
from bridges.connectors.pooling import VectorToTokens
from bridges.connectors.projection import AttentionBridge, Projection
from bridges.connectors.resampler import (
    NAMED,
    CrossAttention,
    PerceiverResampler,
    ResamplerSettings,
    VectorResampler,
)
from bridges.connectors.scale import Standardise
from bridges.instruments.gradients import GradientFlow, gradient_flow
from bridges.instruments.tokens import TokenGeometry, effective_rank, token_geometry
from bridges.instruments.translation import floors, score
from bridges.instruments.uncertainty import Estimate, mean_interval
from bridges.tasks import instructions
from bridges.training.fit import FitSettings
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
from torch import nn
from transformers.utils.logging import disable_progress_bar


@dataclass(frozen=True)
class Size:
    """What a profile means in this chapter."""

    seeds: int
    host: str  # the size of the pretrained host
    steps: int  # training steps of every run
    batch: int
    held_out: int  # validation sentences
    resampler: ResamplerSettings  # of the recipe
    ladder: tuple[int, int, int]  # latents, in the log's ratio 1 : 2 : 4
    ranked: int = 256  # sentences over which the effective rank is averaged


SIZES = {
    "quick": Size(
        seeds=5,
        host="quick",
        steps=48,
        batch=16,
        held_out=150,
        resampler=ResamplerSettings(width=64, latents=16, depth=2, heads=4),
        ladder=(8, 16, 32),
    ),
    "full": Size(
        seeds=8,
        host="full",
        steps=250,
        batch=64,
        held_out=300,
        resampler=ResamplerSettings(width=256, latents=64, depth=2, heads=8),
        ladder=(32, 64, 128),
    ),
}
run = begin(
    "latents", SIZES, profile=profile, seeds=seeds, device=device, out=out
)
size = run.size
torch.set_num_threads(1)
disable_progress_bar()
use_style()

# %% [markdown]
# ## Symptom
#
# The log's numbers for the connector it gave up and the one it built, with what it expected of the second:

# %% tags=["remove-input"]
log = {row[0]: row for row in recorded("t5_architectures")["rows"]}
old, new, hoped = (
    log[name]
    for name in ("attention bridge + unfrozen", "perceiver", "perceiver + encoder")
)
Markdown(
    "| | old connector | resampler, expected | resampler, measured |\n|---|--:|--:|--:|\n"
    "| tokens | 32 | 64 | 64 |\n| attention layers | 1 | 2 | 2 |\n"
    f"| **BLEU (%)** | {old[2]} | {hoped[2]:g} to {hoped[3]:g} | {new[2]} |"
)

# %% [markdown]
# The log took the flat score for the sign of another fault, the [encoder bypass](encoder_bypass.ipynb), and kept the
# resampler.
#
# ## Claim

# %% tags=["remove-input"]
claims = load_claims()
claims["A6"]

# %% tags=["remove-input"]
claims["A7"]

# %% tags=["remove-input"]
claims["A8"]

# %% tags=["remove-input"]
claims["A11"]

# %% [markdown]
# ## Mechanism
#
# A latent $\ell_k$ asks, the inputs $x_1, \dots, x_n$ answer {cite}`jaegle2021perceiver,alayrac2022flamingo`:
#
# $$
# a_{ki} = \operatorname{softmax}_i\!\left(\frac{(W_Q \ell_k)^\top W_K x_i}{\sqrt e}\right), \qquad
# r_k = W_O \sum_i a_{ki}\, W_V x_i .
# $$ (eq-latents-attention)
#
# The weights of each latent sum to 1 over the keys. A sentence vector is *one* key. Then $a_{k1} = 1$ for every latent
# $k$, whatever $W_Q$, $W_K$ and the latents are, and
#
# $$
# r_k = W_O W_V x \quad \text{for all } k.
# $$ (eq-latents-one-key)
#
# All latents read the same. The queries and keys in {eq}`eq-latents-attention` have no part in {eq}`eq-latents-one-key`,
# so they receive no gradient either: the comparison that makes a resampler a resampler is dead weight.

# %% tags=["remove-input"]
show_source(CrossAttention, start="def _keys", lines=7)

# %% [markdown]
# Flamingo's resampler differs in one term of this code: its latents are keys too, so that a latent can at least read the
# other latents. Where the designs that go by one name differ, as their sources have it (the book's own resampler gives the
# outputs of both libraries to $10^{-5}$ with their weights copied):

# %% tags=["remove-input"]
designs = recorded("resampler_designs")
Markdown(
    "| "
    + " | ".join(designs["columns"])
    + " |\n"
    + "|---" * len(designs["columns"])
    + "|\n"
    + "\n".join("| " + " | ".join(row) + " |" for row in designs["rows"])
)

# %% [markdown]
# ## Experiment
#
# ### Counting
#
# The log's sizes: vectors of 1,024 numbers, an inner width of 768, tokens of 512.

# %%
LOG_WIDTH, LOG_TOKEN = 1024, 512
named = NAMED["resampler-log"]


def millions(module: nn.Module) -> float:
    """Parameters in millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


counts = {
    "projection": millions(Projection(LOG_WIDTH, named.width, LOG_TOKEN)),
    "projection, 32 tokens, attention layer": millions(
        AttentionBridge(LOG_WIDTH, named.width, 32, LOG_TOKEN, named.heads)
    ),
    "perceiver resampler, 64 latents": millions(
        VectorResampler(LOG_WIDTH, named, LOG_TOKEN)
    ),
}
dead_weights = sum(
    p.numel()
    for name, p in PerceiverResampler(named).named_parameters()
    if "to_q" in name or "to_k" in name
)
Markdown(
    "| connector | parameters (millions) |\n|---|--:|\n"
    + "\n".join(f"| {name} | {count:.3f} |" for name, count in counts.items())
    + f"\n\nOf the resampler's, {dead_weights / 1e6:.3f} million are queries and keys."
)

# %% [markdown]
# ### What varies with the sentence
#
# If 64 latents carried twice what 32 do, then the part of the tokens that depends on the sentence would spread over twice
# as many directions. The *effective rank* counts directions {cite}`roy2007effective`: 1 when all tokens of a sentence move
# together, 64 when each goes its own way. Untrained connectors at the log's sizes, fed with the book's sentence vectors at
# 1,024 dimensions, standardised:

# %%
words = instructions.tokenizer()
corpus = instructions.corpus(validation=size.held_out)
wide = instructions.sentence_vectors(corpus.train[: size.ranked], width=LOG_WIDTH)
wide = Standardise(LOG_WIDTH).fit(wide)(wide)


@torch.no_grad()
def rank_at_log_size(latents: int, seed: int) -> float:
    """Mean effective rank across tokens of an untrained resampler of the log's sizes."""
    torch.manual_seed(seed)
    connector = VectorResampler(
        LOG_WIDTH, replace(named, latents=latents), LOG_TOKEN
    ).to(run.device)
    tokens = connector(wide.to(run.device)).cpu()
    return effective_rank(tokens - tokens.mean(0)).mean().item()


ranks = {
    latents: [rank_at_log_size(latents, seed) for seed in range(run.seeds)]
    for latents in (32, 64)
}
Markdown(
    "| latents | effective rank of what follows the sentence |\n|--:|---|\n"
    + "\n".join(f"| {n} | {mean_interval(r)} of {n} |" for n, r in ranks.items())
    + f"\n\nMean over {size.ranked} sentences, [95 % interval] over {run.seeds} seeds."
)

# %% [markdown]
# The same taken apart for small connectors into shares of variance: what is a token's own whatever the sentence, what all
# tokens of a sentence have in common, and what one token alone says of it. Beside the resampler stand one whose vector is
# cut into sixteen keys, one whose latents are keys too, and an MLP that gives each token a map of its own.


# %%
def prepared(texts: tuple[str, ...]) -> Sentences:
    """Sentences as a translator needs them, on the device."""
    vectors = instructions.sentence_vectors(texts).to(run.device)
    return Sentences(
        texts, vectors, instructions.labels(texts, words).to(run.device)
    )


known, unseen = prepared(corpus.train), prepared(corpus.validation)
hosts = {"t5": small_host("t5", size.host, HOSTS, run.device)}
WIDTH, TOKEN = known.vectors.shape[1], hosts["t5"].config.hidden_size
loud = Standardise(WIDTH).fit(known.vectors.cpu())(unseen.vectors.cpu())


class Cut(nn.Module):
    """A resampler that reads one vector as several keys, each a slice of it."""

    def __init__(self, keys: int, settings: ResamplerSettings):
        super().__init__()
        self.keys = keys
        self.into = nn.Linear(WIDTH // keys, settings.width)
        self.resampler = PerceiverResampler(settings)

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return self.resampler(self.into(vector.unflatten(1, (self.keys, -1))))


base = size.resampler
BEFORE = {
    "resampler, one key": lambda: VectorResampler(WIDTH, base, TOKEN),
    "resampler, sixteen keys": lambda: Cut(16, base),
    "resampler, latents as keys": lambda: VectorResampler(
        WIDTH, replace(base, latents_as_keys=True), TOKEN
    ),
    "MLP to tokens": lambda: VectorToTokens(WIDTH, base.latents, TOKEN),
}


@torch.no_grad()
def geometry(build, seed: int) -> TokenGeometry:
    """Of an untrained connector's tokens for the held-out sentences."""
    torch.manual_seed(seed)
    return token_geometry(build()(loud))


rows = []
for name, build in BEFORE.items():
    found = [geometry(build, seed) for seed in range(run.seeds)]
    shares = (
        100 * mean_interval([getattr(g, part) for g in found]).mean
        for part in ("identity", "input", "interaction")
    )
    rank = mean_interval([g.effective_rank for g in found])
    rows.append(
        f"| {name} | " + " | ".join(f"{s:.3g}" for s in shares) + f" | {rank} |"
    )
Markdown(
    "| untrained connector | token's own (%) | shared (%) | one token's (%) | effective rank |\n|---|--:|--:|--:|---|\n"
    + "\n".join(rows)
    + f"\n\n{base.latents} tokens, mean over {run.seeds} seeds, [95 % interval]."
)

# %% [markdown]
# ### Where gradients arrive
#
# The gradient of the translation loss before the first step, on the resampler's two layers, with residuals and without.
# Sixteen batches each. Without residuals there is a second consequence of {eq}`eq-latents-one-key`: the second layer reads
# the sentence vector again, the same for all latents whatever the first layer did, and passes nothing of the first on.

# %%
WORKING = Recipe(FitSettings(size.steps, 1e-3, size.batch, warmup=10), base)
BATCHES = 16
EPSILON = torch.finfo(torch.float32).eps


def flow(recipe: Recipe, seed: int, batch: int) -> GradientFlow:
    """The gradients of one batch before the first step."""
    model = untrained(recipe, seed, known, hosts, None)
    rows = torch.arange(batch * size.batch, (batch + 1) * size.batch)
    return gradient_flow(
        model.connector.named_parameters(),
        lambda: model(known.vectors[rows], known.labels[rows]),
    )


def mean_norm(flows: list[GradientFlow], *parts: str) -> float:
    """Mean over batches of the gradient norm of parameters whose name holds any of the parts."""
    return sum(math.hypot(*(f.norm(part) for part in parts)) for f in flows) / len(
        flows
    )


def reach(flows: list[GradientFlow]) -> float:
    """Gradient norm of the first layer over that of the last."""
    last = len([n for n in flows[0].gradient if n.endswith("to_q.weight")]) - 1
    return mean_norm(flows, "attentions.0.", "feed_forwards.0.") / mean_norm(
        flows, f"attentions.{last}.", f"feed_forwards.{last}."
    )


cut_off = replace(WORKING, resampler=replace(base, residual=False))
flows = {
    (name, seed): [flow(recipe, seed, b) for b in range(BATCHES)]
    for name, recipe in (("with residuals", WORKING), ("without", cut_off))
    for seed in range(run.seeds)
}
reaches = {
    name: [reach(flows[name, seed]) for seed in range(run.seeds)]
    for name in ("with residuals", "without")
}
ratios = [
    math.log(a / max(b, EPSILON))
    for a, b in zip(reaches["with residuals"], reaches["without"], strict=True)
]
logs = mean_interval(ratios)
reach_ratio = Estimate(
    math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.n
)
queries = mean_interval(
    [
        mean_norm(flows["with residuals", s], "to_q", "to_k")
        / mean_norm(flows["with residuals", s], "to_v")
        for s in range(run.seeds)
    ]
)
Markdown(
    "| | gradient norm of the first layer over the last |\n|---|---|\n"
    + "\n".join(f"| {name} | {mean_interval(r)} |" for name, r in reaches.items())
    + f"\n\nQueries and keys get {queries} of the gradient norm of the values."
)

# %% [markdown]
# A quotient of exactly zero would make the ratio of the two infinite. It is set to the resolution of the numbers, the
# float32 epsilon, so that the ratio is a lower bound.
#
# ### More latents, more layers
#
# Part I's working recipe, connector and host trained together for equally many steps; only the resampler differs. The last
# three rows take connectors without any attention: one linear token, an MLP to one token, an MLP to as many as the
# resampler has.

# %%
few, own, many = size.ladder
ARMS = {
    f"{own} latents, 2 layers": base,
    f"{few} latents": replace(base, latents=few),
    f"{many} latents": replace(base, latents=many),
    "1 layer": replace(base, depth=1),
    "3 layers": replace(base, depth=3),
    "no residuals": replace(base, residual=False),
}
one = replace(base, latents=1)
PLAIN = {
    "projection, 1 token": replace(WORKING, connector="projection"),
    "MLP, 1 token": replace(WORKING, connector="mlp", resampler=one),
    f"MLP, {own} tokens": replace(WORKING, connector="mlp"),
}
recipes = {name: replace(WORKING, resampler=r) for name, r in ARMS.items()} | PLAIN
floor = floors(
    corpus.train, known.vectors.cpu(), corpus.validation, unseen.vectors.cpu()
)


@dataclass(frozen=True)
class Judged:
    """What a trained translator is worth on the held-out sentences."""

    bleu: float
    distinct: float  # percent
    loss: float  # nats per token
    rank: float  # effective rank of its tokens


@torch.no_grad()
def judged(found: Trained) -> Judged:
    """Judge one."""
    model = found.model
    said = words.batch_decode(
        model.generate(unseen.vectors), skip_special_tokens=True
    )
    scores = score(said, corpus.validation)
    tokens = model.connector(unseen.vectors).cpu()
    rank = token_geometry(tokens).effective_rank if tokens.shape[1] > 1 else 1.0
    return Judged(
        scores.bleu,
        100 * scores.distinct,
        model(unseen.vectors, unseen.labels).item(),
        rank,
    )


runs = [(recipe, seed) for recipe in recipes.values() for seed in range(run.seeds)]
results = iter(train_translators(runs, known, hosts))
found = {
    (name, seed): judged(next(results))
    for name in recipes
    for seed in range(run.seeds)
}


# %% tags=["hide-input"] mystnb={"figure": {"caption": "BLEU of resamplers of different shape (orange) and of connectors without attention (purple). Small dots are seeds, large ones their mean with its 95 % interval; dotted, the BLEU of the best constant sentence and of the nearest training sentence.", "name": "fig-latents-arms"}, "image": {"alt": "Dot plot of BLEU, one row for each connector. All resamplers and the projection to one token lie at about the same BLEU between the two floors; the MLP with many tokens lies to their right."}}
def over_seeds(name: str, part: str) -> Estimate:
    """Mean over seeds of one reading of an arm."""
    return mean_interval([getattr(found[name, s], part) for s in range(run.seeds)])


figure, axes = plt.subplots(figsize=(7.2, 3.8))
for y, name in enumerate(recipes):
    values = [found[name, s].bleu for s in range(run.seeds)]
    axes.plot(
        values, [y - 0.2] * len(values), ".", color=COLOURS["grey"], alpha=0.7
    )
    mean = over_seeds(name, "bleu")
    draw_intervals(
        axes,
        [y],
        [mean],
        flat=True,
        fmt="o",
        color=COLOURS["purple" if name in PLAIN else "orange"],
        capsize=4,
    )
for at in (floor.constant, floor.retrieval):
    axes.axvline(at, color="black", linewidth=0.8, linestyle=":")
axes.set_yticks(range(len(recipes)), list(recipes))
axes.invert_yaxis()
axes.set_xlabel("BLEU")
plt.show()

# %% tags=["hide-input"]
rows = [
    f"| {name} | "
    + " | ".join(
        str(over_seeds(name, part)) for part in ("bleu", "distinct", "loss", "rank")
    )
    + " |"
    for name in recipes
]
Markdown(
    "| connector | BLEU | distinct outputs (%) | loss (nats per token) | effective rank after training |\n"
    "|---|---|---|---|---|\n"
    + "\n".join(rows)
    + f"\n\nMean [95 % interval] over {run.seeds} seeds, {size.steps} steps of {size.batch} sentences. Floors of BLEU:"
    f" {floor}."
)


# %% [markdown]
# (verdict-a6)=
# (verdict-a7)=
# (verdict-a8)=
# (verdict-a11)=
# ## Verdict


# %% tags=["hide-input"]
def paired(name: str, other: str, part: str) -> Estimate:
    """The mean within seeds of one reading of an arm minus another's."""
    return mean_interval(
        [
            getattr(found[name, s], part) - getattr(found[other, s], part)
            for s in range(run.seeds)
        ]
    )


two = f"{own} latents, 2 layers"
run.note(
    ledger.judge(
        "A6",
        {
            "projection_parameters": counts["projection"],
            "perceiver_parameters": counts["perceiver resampler, 64 latents"],
        },
    )
)

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "A7",
        {
            "gradient_reach_ratio": reach_ratio,
            "residual_gain": paired("no residuals", two, "loss"),
            "depth_gain": paired("1 layer", two, "loss"),
        },
    )
)

# %% tags=["hide-input"]
rank_ratio = mean_interval([b / a for a, b in zip(*ranks.values(), strict=True)])
run.note(
    ledger.judge(
        "A8", {"effective_rank_ratio": rank_ratio, "query_gradient_share": queries}
    )
)

# %% tags=["hide-input"]
run.note(
    ledger.judge(
        "A11",
        {
            "latents_gain": paired(f"{many} latents", f"{few} latents", "bleu"),
            "layers_gain": paired("3 layers", "1 layer", "bleu"),
        },
    )
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# A6 was not blind: the arithmetic was known when its criterion was written. The resampler at the log's sizes has a little
# more than the log's estimate, by less than a fifth of a million beyond what rounds into it.
#
# ## What holds instead
#
# A resampler with one key is a narrow thing: one linear reading of the vector, added to every latent, then the same
# feed-forward for all of them. Its tokens differ, but mostly in what they are without any sentence. Residuals do let
# gradients reach the first layer, and without them the first layer is cut off altogether; it makes no difference to the
# loss, because a second reading of one key is the first reading again.
#
# Does that narrowness limit translation? It would be easy to say so, for an MLP that gives each token a map of its own is
# better here. But {numref}`fig-latents-rank` does not make rank the cause of low BLEU: a single linear token, which can
# have no rank beyond one, does what the resampler's sixteen do, and fifteen directions in the place of one buy little
# beside what [scale and rate](collapse.ipynb) buy.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "BLEU against the effective rank of the tokens after training, one dot for each trained translator; a single token counts as rank 1.", "name": "fig-latents-rank"}, "image": {"alt": "Scatter plot of BLEU against effective rank after training. Resamplers, projection and the MLP with one token stand in one column at a rank near one; the MLP with many tokens stands far to the right and a little higher."}}
figure, axes = plt.subplots(figsize=(7.2, 3))
groups = [("resamplers", list(ARMS)), *((name, [name]) for name in PLAIN)]
for (label, names), marker, colour in zip(
    groups, "osD^", ("orange", "blue", "green", "purple"), strict=True
):
    each = [found[name, s] for name in names for s in range(run.seeds)]
    axes.plot(
        [j.rank for j in each],
        [j.bleu for j in each],
        marker,
        color=COLOURS[colour],
        alpha=0.7,
        label=label,
    )
axes.set(xlabel="effective rank of the tokens", ylabel="BLEU")
axes.legend(loc="lower right")
plt.show()

# %% tags=["hide-input"]
linear, one_token, tokens_of_mlp = PLAIN
Markdown(
    f"Paired by seed, and beside the resampler of two layers: one linear token gains {paired(linear, two, 'bleu')} BLEU,"
    f" an MLP to one token {paired(one_token, two, 'bleu')}, an MLP to {own} tokens"
    f" {paired(tokens_of_mlp, two, 'bleu')}."
)

# %% [markdown]
# A resampler earns its name where there is something to choose from: patches, frames, words. For one vector, a linear map
# or an MLP to tokens does what can be done. What kept the log's translator at its floor was neither
# ([what does collapse a translator](collapse.ipynb)).
#
# ## Tweak it
#
# Cut the vector into more keys and watch the latents come apart. The picture shows an untrained resampler's singular
# values across tokens, averaged over sentences, each as a share of their sum. In a live kernel, choose louder latents.


# %% tags=["hide-input"]
@torch.no_grad()
def frame(keys: int, latent_std: float) -> tuple[Figure, str]:
    """The spectrum across tokens of what follows the sentence, at one number of keys."""
    torch.manual_seed(0)
    tokens = Cut(
        keys, replace(ResamplerSettings(64, 16, 2, 4), latent_std=latent_std)
    )(loud).double()
    spectrum = torch.linalg.svdvals(tokens - tokens.mean(0))
    shares = (spectrum / spectrum.sum(1, keepdim=True)).mean(0)
    rank = token_geometry(tokens.float()).effective_rank
    figure = Figure(figsize=(7.2, 3))
    axes = figure.subplots()
    axes.bar(range(1, len(shares) + 1), 100 * shares, color=COLOURS["blue"])
    axes.set(
        xlabel="direction across tokens",
        ylabel="share of singular values (%)",
        ylim=(0, 100),
        title=f"{keys} {'key' if keys == 1 else 'keys'}: effective rank {rank:.2f} of 16",
    )
    return figure, (
        f"Bar chart of the singular values across 16 tokens with {keys} keys: effective rank {rank:.2f}."
    )


explorer = Explorer(
    "keys",
    {str(n): n for n in (1, 2, 4, 8, 16, 32)},
    frame,
    choices={"latent_std": [0.02, 1.0]},
)
explorer

# %% [markdown]
# ## Try it on yours
#
# Both instruments take any module: tokens of a batch of inputs, and a loss.

# %%
connector = VectorResampler(LOG_WIDTH, named, LOG_TOKEN)  # yours
token_geometry(connector(wide[:8]))

# %%
gradient_flow(
    connector.named_parameters(), lambda: connector(wide[:8]).square().mean()
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    mlp_gain=paired(tokens_of_mlp, two, "bleu"),
    one_linear_token_gain=paired(linear, two, "bleu"),
    rank_32=mean_interval(ranks[32]),
    rank_64=mean_interval(ranks[64]),
    floor_constant=floor.constant,
    floor_retrieval=floor.retrieval,
)
run.close()
