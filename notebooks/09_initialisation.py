# %% [markdown]
# # The Perceiver initialisation bug
#
# Two lines of code, one of them redundant, were named the root cause of a run that learned nothing. What the two lines
# leave behind is what their fix leaves behind, to the last bit. The better question that hides in the diagnosis is
# whether small latents starve a perceiver of gradient. They do not, though they cost some accuracy.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file

# %% tags=["hide-input"]
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from bridges.benches.alignment import Alignment, AlignmentRecipe
from bridges.benches.study import Outcome
from bridges.connectors.resampler import CrossAttention, PerceiverResampler, ResamplerSettings
from bridges.hosts.contrastive import AlignmentSettings
from bridges.instruments.attention import flatness
from bridges.instruments.gradients import gradient_flow
from bridges.instruments.uncertainty import Estimate, mean_interval
from bridges.tasks.scenes import WIDTH, scenes
from bridges.training.fit import FitSettings
from bridges.training.losses import alignment_loss
from press.book import Markdown, begin, claims, explore, figure, lines, plt, show_source, table
from press.figures import BLUE, GREEN, ORANGE, PURPLE
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

# Pairs: quick, full profile.
run = begin("initialisation", globals(), seeds=(2, 16), known=(4096, 65536),  # pairs to learn from
    width=(16, 64),  # of the perceiver
    latents=(4, 16), steps=(250, 1000), batch=(32, 128),
    widths=((8, 16, 32), (16, 32, 64, 128)),  # Matryoshka prefixes; the last is the whole
)  # fmt: skip

# %% [markdown]
# ## Symptom
#
# The alignment log's perceiver stays at a CLIP loss of 4.85 in training and finds one pair of three thousand, while the
# model without a perceiver learns; the figures stand in {numref}`fig-stuck-symptom`. Looking for what the perceiver has
# and the other model has not, the log finds that its latents are drawn twice.
#
# ## Claim

# %% tags=["remove-input"]
claims("B1", "B2")

# %% [markdown]
# ## Mechanism
#
# The criticised code draws the latents at unit scale and then draws them again, in place, at 0.02. The log has two fixes.
# The first multiplies the unit draw by 0.02, the second leaves the unit draw out. PyTorch's `normal_` overwrites what was
# there, so that of the first draw nothing is left but a random generator that stands one draw further. All three end at
# $0.02\,z$ with $z$ standard normal.
#
# Are latents of standard deviation 0.02 too small to learn from? Attention enters here:

# %% tags=["remove-input"]
show_source(CrossAttention, start="def weights")

# %% [markdown]
# With latents $\ell$ and inputs $x$ the scores are $\ell W_q W_k^\top x^\top / \sqrt{e}$. Small latents mean small scores
# and a flat softmax, as the log says. But a flat softmax passes the mean of the values on, and with it a gradient to
# everything behind; and with a LayerNorm on the latents their scale cancels before the scores are made. So the log's
# chain from small values to no learning needs measuring at each link.
#
# ## Experiment
#
# ### The three initialisations, bit by bit
#
# At the log's own size of 64 latents of width 1,024, each from the same seed, and the second fix once more from a
# generator that has made the draw which the criticised code throws away:

# %%
SIZE, STD = (64, 1024), 0.02
bug_against_fix = fix_against_fix = 0.0
for seed in range(16):
    torch.manual_seed(seed)
    criticised = nn.init.normal_(torch.randn(SIZE), std=STD)  # draws twice
    torch.manual_seed(seed)
    fix_a = torch.randn(SIZE) * STD
    torch.manual_seed(seed)
    fix_b = nn.init.normal_(torch.empty(SIZE), std=STD)
    torch.manual_seed(seed)
    torch.randn(SIZE)
    one_draw_on = nn.init.normal_(torch.empty(SIZE), std=STD)
    bug_against_fix = max(bug_against_fix, (criticised - one_draw_on).abs().max().item())
    fix_against_fix = max(fix_against_fix, (fix_a - fix_b).abs().max().item())
table(
    "compared | largest difference over seeds",
    [("criticised code, fix B one draw on", bug_against_fix), ("fix A, fix B", fix_against_fix)],
)

# %% [markdown]
# Not one of the values differs once the generators are aligned. At equal seed the criticised code and fix B are two draws
# of one distribution. There is no bug here to fix: the code is clumsy, and it does what its fix does.
#
# ### Small latents, link by link
#
# Now the standard deviation itself, over three orders of magnitude, with and without LayerNorm. Before training we
# measure how flat the first layer's attention is (its entropy over the largest it can have) and what gradient arrives in
# the perceiver; then we train at a rate of 0.002. That is the log's number, and in this narrow connector a gentle rate;
# [a factorial of causes](factorial.ipynb) crosses the deviation with a harsher one.

# %%
bench = Alignment(run.widths, run.known, device=run.device)
DEVIATIONS = (0.002, 0.02, 0.2, 1.0)


def recipe(std: float, norm: bool) -> AlignmentRecipe:
    """The log's perceiver with mean pooling, scaled down."""
    resampler = ResamplerSettings(run.width, run.latents, 2, 2, layer_norm=norm, latent_std=std)
    bridge = AlignmentSettings(WIDTH, WIDTH, run.widths[-1], resampler)
    return AlignmentRecipe(bridge, FitSettings(run.steps, 2e-3, run.batch, 0, math.inf, schedule="constant"))


def at_start(arms, seeds):
    """Gradient norms and the first layer's flatness before training, on one batch of 32."""
    found = {}
    patches, text = bench.pairs.patches[:32].to(bench.device), bench.pairs.text[:32].to(bench.device)
    for (arm, made), seed in product(arms.items(), seeds):
        model = bench.untrained(made, seed)
        flow = gradient_flow(
            model.named_parameters(), lambda m=model: alignment_loss(*m(patches, text), bench.widths)[0]
        )
        project, perceiver, _ = model.image
        with torch.no_grad():
            inputs = project(patches)
            weights = perceiver.attentions[0].weights(perceiver.latents.expand(len(inputs), -1, -1), inputs)
        parts = {"perceiver": "image.1.", "latents": "image.1.latents", "queries": "to_q", "values": "to_v"}
        norms = {part: flow.norm(name) for part, name in parts.items()}
        found[arm, seed] = Outcome({0: norms | {"flatness": flatness(weights)}})
    return found


arms = {(std, norm): recipe(std, norm) for norm in (True, False) for std in DEVIATIONS}
study = run.study("deviations", bench.train, arms) | run.study("start", at_start, arms)


# %% tags=["hide-input"] mystnb={"figure": {"caption": "Before training: gradient norm of the whole perceiver and of its latents, and flatness of the first layer's attention (1: every patch counts the same), against the latents' standard deviation. After training: R@1 among 512 unseen pairs, where chance is 0.2 %. In the last two panels blue is with LayerNorm, orange without. Means over the seeds of record with their 95 % interval, single seeds thin.", "name": "fig-init-sweep"}, "image": {"alt": "Three panels against latent standard deviation from 0.002 to 1, each with and without LayerNorm. As the deviation grows, the gradient norms of perceiver and latents fall with LayerNorm, that of the latents most; without it they change little. Attention is nearly flat everywhere. R@1 rises by some points, with LayerNorm and without, and is higher with it at every deviation."}}
NORMS = {"LayerNorm": True, "no LayerNorm": False}
PANELS = {"gradient norm": ("perceiver", "latents"), "flatness of attention": ("flatness",), "R@1 (%)": ("r1",)}
panels = figure(columns=3, height=3.3, sharey=False)
for axes, (title, readings) in zip(panels, PANELS.items(), strict=True):
    curves = {
        f"{reading}, {name}": pd.DataFrame({std: study.values((std, norm), reading) for std in DEVIATIONS}).T
        for reading, (name, norm) in product(readings, NORMS.items())
    }
    colour = dict(zip(curves, (BLUE, ORANGE, GREEN, PURPLE), strict=False))
    lines(axes, curves, colour=colour, title=title, xscale="log", xlabel="latent std")
panels[0].set_yscale("log")
panels[1].set_ylim(0, 1.05)
panels[2].set_ylim(0)
panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()


# %% tags=["hide-input"]
def between(reading: str, after: float, before: float, norms=(True, False), ratio: bool = False) -> Estimate:
    """A reading at one deviation minus that at another, or over it, paired by seed, mean of the connectors in `norms`."""
    of = np.log if ratio else np.asarray
    pairs = [(study.values((after, norm), reading), study.values((before, norm), reading)) for norm in norms]
    found = mean_interval(np.mean([of(a) - of(b) for a, b in pairs], axis=0).tolist())
    return Estimate(*map(math.exp, (found.mean, found.low, found.high)), found.n) if ratio else found


table(
    "gradient norm at std 0.02 over that at 1 | with LayerNorm | without",
    (
        (part, *(between(part, 0.02, 1.0, [norm], ratio=True) for norm in NORMS.values()))
        for part in ("perceiver", "latents", "queries", "values")
    ),
    "Geometric mean [95 % interval] over seeds. Above 1, the small latents get *more* gradient.",
)

# %% [markdown]
# (verdict-b1)=
# (verdict-b2)=
# ## Verdict

# %% tags=["hide-input"]
run.judge("B1", lambda: {"bug_against_fix": bug_against_fix, "fix_a_against_fix_b": fix_against_fix}, n=16)

# %% tags=["hide-input"]
run.judge(
    "B2",
    lambda: {
        "perceiver_gradient_ratio": between("perceiver", 0.02, 1.0, ratio=True),
        "flatness_difference": between("flatness", 0.02, 1.0),
        "r1_gain": between("r1", 1.0, 0.02),
    },
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# The initialisation the log criticises and the ones it ships are one initialisation. Whatever changed after the fix, if
# anything did, changed because the same list of fixes also lowers the learning rate, raises the batch and replaces the
# pooling.
#
# Nor are small latents starved. At 0.02 the perceiver gets more gradient than at 1, with LayerNorm and without, and it
# learns:

# %% tags=["remove-input"]
small = {name: study.mean((0.02, norm), "r1") for name, norm in NORMS.items()}
Markdown(
    f"R@1 at 0.02 is {small['LayerNorm']} % with LayerNorm and {small['no LayerNorm']} % without; chance is"
    f" {100 / bench.unseen:.1f} %. Unit latents are ahead by {between('r1', 1.0, 0.02)} points after {run.steps} steps."
)

# %% [markdown]
# So one part of the log's fear is confirmed: small latents cost more than five points at this length of training. They do
# not prevent learning. Two links of the log's chain are there: attention at 0.02 is almost uniform, and without LayerNorm the query
# projections get less than half of the gradient. With it they get more than twice as much. But unit latents are about as
# flat in this small perceiver, which leaves the criterion's 0.1 no room, and flatness does not keep the rest from
# learning: the values get more gradient from small latents than from large ones, as the mechanism says they can.
#
# With LayerNorm the latents' own gradient even grows as they shrink, by the rule of that layer: it divides its input by
# the input's size, so that its derivative goes as one over that size. A gradient is no measure of learning either way. AdamW
# divides each by its own recent size before it takes a step, and a part that gets half of the gradient moves about as
# far. What would starve a perceiver is a gradient of zero, and no deviation here comes near one.
#
# Small latents are a different matter from a bug, and the field lives with both: Flamingo's open versions draw them at
# unit scale {cite}`alayrac2022flamingo`; BLIP-2's code makes its queries zero and then, in the next line, redraws them at
# 0.02 {cite}`li2023blip2`, the very pattern the log calls a bug, and it trains. One choice does break something exactly.
# Idefics2 starts all its latents at one {cite}`laurencon2024idefics2`; identical rows ask identical questions and get
# identical answers, layer after layer, and if they are then *averaged*, nothing ever tells them apart:

# %%
torch.manual_seed(0)
resampler = PerceiverResampler(replace(recipe(1.0, True).bridge.resampler, latents=8))
with torch.no_grad():
    resampler.latents.fill_(1.0)
answers = resampler(torch.randn(5, 16, run.width))
answers.mean(1).square().sum().backward()
gradient = resampler.latents.grad
Markdown(
    f"Largest difference between the eight answers: {(answers - answers[:, :1]).abs().max().item():.2g}; between their"
    f" latents' gradients: {(gradient - gradient[:1]).abs().max().item():.2g}. Eight latents are one."
)

# %% [markdown]
# Under mean pooling their gradients are equal too, so training keeps them equal. In Idefics2 the latents go to a language
# model as separate tokens at separate positions, which is what saves them.
#
# ## Tweak it
#
# Move the latents' standard deviation and watch what the first layer attends to in one scene: rows are latents, columns
# the sixteen cells of the picture. With LayerNorm the picture hardly changes, since the norm takes the scale away: in a
# live kernel, put it back and see.


# %% tags=["hide-input"]
def frame(axes, std: float, norm: str) -> str:
    """The attention of an untrained perceiver over one scene."""
    project, perceiver, _ = bench.untrained(recipe(std, NORMS[norm]), 0).cpu().image
    with torch.no_grad():
        inputs = project(shown.patches())
        weights = perceiver.attentions[0].weights(perceiver.latents.expand(1, -1, -1), inputs)
    axes[0].imshow(shown.draw(0))
    axes[0].set_axis_off()
    shares = axes[1].imshow(weights[0].mean(0), vmin=0, vmax=0.25, cmap="cividis", aspect="auto")
    axes[1].grid(visible=False)
    axes[1].set(xlabel="cell of the picture", ylabel="latent", title=f"std {std:g}: flatness {flatness(weights):.4f}")
    axes[1].figure.colorbar(shares, ax=axes[1], label="attention (share)")
    return (
        f"A scene ({shown.captions()[0]}) and the attention of {run.latents} untrained latents of standard deviation {std:g}"
        f" over its 16 cells, {norm}. Flatness {flatness(weights):.4f}, where 1 is uniform."
    )


shown = scenes(1, seed=3)
explore(
    "latent standard deviation", (0.02, 0.2, 1.0, 3.0, 10.0), frame, columns=2, ratios=(1, 3), norm=list(NORMS)[::-1]
)

# %% [markdown]
# ## Try it on yours
#
# Gradients by parameter need a model's `named_parameters` and a function that computes its loss. Here the peer is a BLIP-2
# Q-Former with its query tokens, built from a configuration.

# %%
torch.manual_seed(0)
small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
peer = Blip2QFormerModel(Blip2QFormerConfig(**small, encoder_hidden_size=WIDTH)).eval()
queries = nn.Parameter(torch.zeros(1, 4, 32).normal_(std=0.02))
seen = {"query_embeds": queries.expand(8, -1, -1), "encoder_hidden_states": bench.pairs.patches[:8]}
flow = gradient_flow(
    [("query_tokens", queries), *peer.named_parameters()],
    lambda: peer(**seen).last_hidden_state.square()[..., 0].mean(),
)
Markdown(
    f"{len(flow.gradient)} parameters, {len(flow.dead)} of them dead (a bias on keys is so by arithmetic: a softmax does not"
    f" see what is added to all its scores): {', '.join(f'`{name}`' for name in flow.dead[:6]) or 'none'}. Gradient norm at"
    f" the queries {flow.gradient['query_tokens']:.3g}, of the whole {flow.norm():.3g}."
)

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(
    r1_gain_with_layernorm=between("r1", 1.0, 0.02, [True]), r1_gain_without_layernorm=between("r1", 1.0, 0.02, [False])
)
run.close()
