# %% [markdown]
# # The encoder bypass that wasn't
#
# A sentence vector goes into T5, and the same sentence comes out, whatever the vector. The log that saw this blamed one
# keyword argument, which was said to leave T5's encoder out. It does not: the old code and its fix compute the same,
# to the last bit, before training and after. This chapter hands tokens to an encoder-decoder by three routes, on T5 and
# on BART, finds the one that does leave the encoder out, and brings the symptom back with the log's fix in place.

# %% tags=["parameters"]
profile = "quick"  # quick | full
seeds = 0  # at least 2; 0 takes the profile's number
device = "auto"  # auto | cpu | cuda | mps
out = ""  # where the record goes, a .json file
yours = ""  # your own encoder-decoder: a folder or a hub name

# %% tags=["hide-input"]
from dataclasses import replace
from itertools import product

import torch
from bridges.benches import translation
from bridges.benches.study import peak
from bridges.benches.translation import Recipe
from bridges.connectors.projection import AttentionBridge
from bridges.connectors.resampler import ResamplerSettings
from bridges.hosts import seq2seq
from bridges.hosts.seq2seq import ROUTES, route_inputs, route_logits
from bridges.instruments.routes import RouteComparison, compare_routes
from bridges.instruments.translation import score
from bridges.instruments.uncertainty import Estimate
from bridges.training.fit import FitSettings
from press.book import HOSTS, Markdown, begin, claims, dots, explore, figure, lines, plt, recorded, show_source, table
from press.figures import BLUE, GREEN, ORANGE
from press.provenance import refusing
from transformers import BartModel, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

# Pairs: quick, full profile.
run = begin("encoder_bypass", globals(), seeds=(2, 10), host=("quick", "full"),  # the size of the pretrained hosts
    steps=(32, 300), batch=(16, 64), held_out=(150, 300),  # sentences that nothing is trained on
    tokens=(8, 16),  # that the connector makes of a vector
)  # fmt: skip
with refusing():
    mine = seq2seq.load(yours) if yours else None
torch.use_deterministic_algorithms(True, warn_only=True)

# %% [markdown]
# ## Symptom
#
# The log trained four connectors from a 1024-dimensional sentence vector into `t5-small`. All four scored next to nothing
# and produced generic sentences. It then changed how the tokens are handed to T5, and expected several times as much.
# {numref}`fig-bypass-symptom` shows both, and keeps apart what was measured and what was hoped for: the log records no
# BLEU after the change.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "BLEU as the log recorded it. Crosses were measured; the bar is the range the log expected of its fix, for which it gives no measurement.", "name": "fig-bypass-symptom"}, "image": {"alt": "Plot of BLEU for five architectures. Projection, attention bridge, attention bridge unfrozen and perceiver lie between 1.5 and 1.9. For the perceiver with encoder an open bar spans the expected 8 to 15."}}
log = recorded("t5_architectures")["rows"]
axes = figure(height=2.4)
dots(axes, {name: [low] if kind == "measured" else [] for name, _, low, _, kind in log}, colour=BLUE, xlabel="BLEU (%)")
for place, (_, _, low, high, kind) in enumerate(log):
    if kind == "expected":
        axes.barh(place, high - low, left=low, height=0.5, color="none", edgecolor=ORANGE, lw=1.5)
        axes.text(high + 0.2, place, "expected, not measured", va="center", color=ORANGE)
axes.set_xlim(0, 20)
plt.show()

# %% [markdown]
# ## Claim
#
# The log reads its old code, `t5(inputs_embeds=tokens, labels=...)`, as handing the tokens to the *decoder*: the encoder
# is skipped, the decoder gets a fake encoder output and learns to ignore it. Its fix calls the encoder by hand and passes
# the result as `encoder_outputs`. An earlier log of the same project argues the other way round: an encoder after the
# resampler is redundant and brings a distribution mismatch, so it should stay out. Both presuppose that the old code had
# no encoder in it.

# %% tags=["remove-input"]
claims("A1", "A5")

# %% [markdown]
# ## Mechanism
#
# With tokens $E \in \mathbb{R}^{K \times d}$ from the connector and target words $y$, an encoder-decoder computes
#
# $$
# H = \mathrm{Enc}(E), \qquad \log p(y_t \mid y_{<t}, E) = \mathrm{Dec}(y_{<t}, H)_{y_t}.
# $$ (eq-bypass-host)
#
# A bypass would put $H = E$ in {eq}`eq-bypass-host`. The three routes differ in one line each:

# %% tags=["remove-input"]
show_source(route_inputs)

# %% [markdown]
# What does the host do with `inputs_embeds`? This is T5's forward pass in the installed version of transformers, at the
# line in question:

# %% tags=["remove-input"]
show_source(T5ForConditionalGeneration.forward, start="if encoder_outputs is None", lines=8)

# %% [markdown]
# and this is BART's:

# %% tags=["remove-input"]
show_source(BartModel.forward, start="if encoder_outputs is None", lines=7)

# %% [markdown]
# The tokens enter where word embeddings would: *before* the encoder {cite}`raffel2020t5,lewis2020bart`. Nothing in a name
# such as `inputs_embeds` says so, and for years the library gave a reason to think otherwise: `generate` took no
# `inputs_embeds` for encoder-decoders, so people who asked for it were told to run the encoder by hand and pass
# `encoder_outputs` {cite}`hf6535,hf11530,hf12844`, which `generate` accepted from 2021 on {cite}`hf10599`; it came to take
# `inputs_embeds` itself with a later change {cite}`hf14443`. A workaround for generation may well have been remembered as
# a rule about training. That is a guess about how the belief arose; what the code does is not.
#
# ## Experiment
#
# The hosts are a real `T5ForConditionalGeneration` and a real `BartForConditionalGeneration`, small, and pretrained on the
# spot to restore masked words of the book's instruction sentences; each seed has a host of its own. The connector, an MLP,
# turns one sentence vector into a few tokens. Host and connector are trained together, as in the log's commands, and an
# arm is a host and a route: nothing else differs within a seed.

# %%
bench = translation.bench(HOSTS, run.device, hosts=("t5", "bart"), size=run.host, held_out=run.held_out)
recipe = Recipe(
    FitSettings(run.steps, 1e-3, run.batch, warmup=10),
    ResamplerSettings(width=64, latents=run.tokens, depth=1, heads=4),
    connector="mlp",
)
ARMS = {(host, route): replace(recipe, host=host, route=route) for host, route in product(bench.hosts, ROUTES)}
EMBEDS, OUTPUTS, BYPASS = ROUTES
Markdown(
    f"{len(bench.known.texts):,} sentences to train on, {run.held_out} held out, {len(bench.tokenizer)} words, vectors of"
    f" {bench.known.vectors.shape[1]} numbers; for example *{bench.known.texts[0]}*."
)

# %% [markdown]
# ### One forward pass
#
# First without any training: the same host, the same tokens, three routes. The instrument counts how often the encoder
# ran and compares the logits with those of `inputs_embeds`.


# %%
def compared(translator) -> RouteComparison:
    """The three routes behind one translator's connector, on the held-out sentences."""
    with torch.no_grad():
        tokens = translator.connector(bench.unseen.vectors)
    return compare_routes(route_logits(translator.host, tokens, bench.unseen.labels), translator.host.get_encoder())


before = {host: compared(bench.untrained(ARMS[host, EMBEDS], seed=0)) for host in bench.hosts}
table(
    f"host | route | encoder runs | largest difference in logits to `{EMBEDS}`",
    (
        (host.upper(), f"`{route}`", before[host].encoder_calls[route], before[host].logit_difference[route])
        for host, route in ARMS
    ),
)

# %% [markdown]
# `inputs_embeds` runs the encoder once, exactly as often as the explicit call, and the logits agree to the last bit. The
# true bypass, `encoder_outputs` with the bare tokens in it, shows that the instrument can tell when the encoder is left
# out.
#
# ### Whole training runs
#
# Equal before training could still part ways during it. At every look each translator is read through all three
# routes once more, with the weights that it has by then.


# %%
def differences(translator, recipe: Recipe) -> dict[str, float]:
    """The largest differences in logits to the first route, with the weights of a run."""
    apart = compared(translator).logit_difference
    return {"explicit call": apart[OUTPUTS], "true bypass": apart[BYPASS]}


study = run.study("routes", bench.train, ARMS, looks=(run.steps // 4, run.steps // 2), read=differences)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Loss on held-out sentences by route, means over seeds with their 95 % interval, single seeds thin. The curve of the explicit encoder call (thin) lies on that of inputs_embeds (thick).", "name": "fig-bypass-curves"}, "image": {"alt": "Two panels, T5 and BART, loss in nats per token against training steps. In each the curves of inputs_embeds and encoder_outputs coincide. The curve of the true bypass starts below them on both hosts; on T5 it stays below, on BART it crosses and ends above."}}
panels = figure(columns=2, height=3.2)
COLOUR = {EMBEDS: "#56B4E9", OUTPUTS: ORANGE, BYPASS: GREEN}
for axes, host in zip(panels, bench.hosts, strict=True):
    curves = {route: study.curve((host, route), "loss") for route in ROUTES}
    lines(axes, curves, colour=COLOUR, title=host.upper(), xlabel="training steps")
    axes.lines[0].set_linewidth(7)
panels[0].set_ylabel("loss (nats per token)")
panels[1].legend()
plt.show()

# %% [markdown]
# Are the two curves equal, or only close? Every reading at every look, loss, BLEU, distinct outputs and conditioning gap,
# is compared within each seed, and so are the sentences that the runs of this page say in the end. They are equal:

# %% tags=["hide-input"]
apart = [study.apart((host, EMBEDS), (host, OUTPUTS)) for host in bench.hosts]
equal = sum(int((found == 0).sum()) for found in apart)
pairs = list(product(bench.hosts, range(run.seeds)))
same = sum(study.texts((h, EMBEDS), s, "said") == study.texts((h, OUTPUTS), s, "said") for h, s in pairs)
table(
    "host | route | loss (nats per token) | BLEU | distinct outputs (%)",
    ((a[0].upper(), f"`{a[1]}`", *(study.mean(a, name) for name in ("loss", "bleu", "distinct"))) for a in ARMS),
    f"Mean [95 % interval] over {len(study.seeds(*ARMS))} seeds, each with a host of its own. Floors of BLEU: {bench.floors}."
    f" Equal to the last bit in every reading: {equal} of {sum(map(len, apart))} pairs of `{EMBEDS}` and `{OUTPUTS}`; to the"
    f" letter in what they say: {same} of {len(pairs)}.",
)

# %% [markdown]
# (verdict-a1)=
# (verdict-a5)=
# ## Verdict


# %% tags=["hide-input"]
def largest(host: str) -> Estimate:
    """The largest difference that the explicit call makes, at any look of any seed."""
    seen = max(study.values((host, route), peak("explicit call")).max() for route in (EMBEDS, OUTPUTS))
    return Estimate(seen, seen, seen, len(study.seeds(*ARMS)))


run.judge("A1", lambda: {f"logit_difference_{host}": largest(host) for host in bench.hosts})


# %% tags=["hide-input"]
def cost(host: str):
    """What leaving the encoder out adds to the loss, paired within seeds."""
    return study.gain((host, BYPASS), (host, OUTPUTS), "loss")


run.judge(
    "A5", lambda: {f"{part}_{host}": cost(host) for part, host in product(("redundancy", "mismatch"), bench.hosts)}
)

# %% tags=["nbval-check-output", "keep_output", "remove-input"]
print(run.verdict_lines())

# %% [markdown]
# ## What holds instead
#
# There was no bypass to mend, so the mend could not have helped: a change that leaves every bit as it was cannot move
# BLEU. What a *true* bypass does is a question of its own:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What leaving the encoder out costs: loss of the true bypass minus that of the encoder route, paired by seed and host, mean and 95 % interval; left of zero the bypass is better. Small dots are the seeds trained on this page. Dotted: zero, and the criterion's 0.05 to either side.", "name": "fig-bypass-cost"}, "image": {"alt": "Dot plot of the paired difference in loss, one row for T5 and one for BART, with dotted lines at zero and at plus and minus 0.05 nats per token. T5 lies left of zero, BART right of it, each with its whole interval, and both inside the outer lines."}}
live = {
    host: study.live.values((host, BYPASS), "loss") - study.live.values((host, OUTPUTS), "loss") for host in bench.hosts
}
dots(
    figure(height=2),
    {host.upper(): cost(host) for host in bench.hosts},
    colour=GREEN,
    points={host.upper(): values for host, values in live.items()},
    at=(-0.05, 0, 0.05),
    xlabel="cost of leaving the encoder out (nats per token)",
)
plt.show()

# %% [markdown]
# The log's second opinion is half right. By the criterion's line the encoder is redundant on both hosts: to leave it out
# costs less than the line allows. But there is no mismatch that its absence would mend: neither host gains what the line
# asks. On average the bypass is a little better on T5 and a little worse on BART, in loss and in BLEU alike: what holds on
# one host is no law for another. The loss does not tell all of it either. With the encoder left out, the translators of
# both hosts say far fewer different sentences, as the table above shows, on T5 too, where the loss is better.
#
# And the symptom? It comes back, with the log's fix in place, from two things nobody suspected. One is the scale of the
# sentence vectors: at unit norm, each of 256 features has a standard deviation near $1/16$. Beside the learned tokens of
# the log's own attention bridge, drawn at unit scale, that is a whisper:

# %% tags=["remove-input"]
show_source(AttentionBridge, start="def forward")

# %% [markdown]
# The other is the learning rate, $5 \times 10^{-5}$. The runs below take the explicit encoder call; they differ in these
# two things alone.

# %%
working = replace(recipe, connector="bridge", route=OUTPUTS)
AS_LOGGED, WORKING = "raw vectors, rate 5e-5, as logged", "standardised, rate 1e-3"
SYMPTOM = {AS_LOGGED: replace(working, fit=replace(recipe.fit, lr=5e-5), logged_scale=True), WORKING: working}
study |= run.study("symptom", bench.train, SYMPTOM)

# %% tags=["hide-input"]
said = score(study.texts(AS_LOGGED, 0, "said"), bench.references)
table(
    "T5, explicit encoder call | BLEU | distinct outputs (%) | conditioning gap (nats per token)",
    ((arm, *(study.mean(arm, reading) for reading in ("bleu", "distinct", "gap"))) for arm in SYMPTOM),
    f"Mean [95 % interval] over {len(study.seeds(*SYMPTOM))} seeds. Floors of BLEU: {bench.floors}. In the first row, seed 0"
    f" says to {100 * said.most_common_share:.0f} % of the inputs: *{said.most_common}*.",
)

# %% [markdown]
# This is a cause that suffices; it does not prove that it was the log's. How much of it is the scale and how much the rate
# is taken apart in [what does collapse a translator](collapse.ipynb).
#
# ## Tweak it
#
# If the log were right, `inputs_embeds` would give the decoder the bare tokens. Blend the two: the decoder of the trained
# T5 attends to $(1-\alpha)\,\mathrm{Enc}(E) + \alpha E$. At $\alpha = 0$ this is the encoder route, at $\alpha = 1$ the
# true bypass. Move the slider and see, for a sentence that the model has not seen, how probable each of its words is,
# given the words before it. In a live kernel, choose another sentence, or BART.

# %% tags=["hide-input"]
listening = {host: study.model((host, OUTPUTS), 0) for host in bench.hosts}


@torch.no_grad()
def frame(axes, alpha: float, sentence: str, host: str) -> str:
    """How probable each word is to one host at one blend, beside what it is by `inputs_embeds`."""
    given, model = bench.sentences((sentence,)), listening[host]
    tokens, ids = model.connector(given.vectors), given.labels[0]
    encoded = model.host.get_encoder()(inputs_embeds=tokens).last_hidden_state
    memory = BaseModelOutput(last_hidden_state=torch.lerp(encoded, tokens, alpha))
    routes = {EMBEDS: {EMBEDS: tokens}, "blend": {OUTPUTS: memory}}
    logits = {name: model.host(**how, labels=given.labels).logits[0] for name, how in routes.items()}
    for (name, seen), shift, colour in zip(logits.items(), (-0.2, 0.2), (BLUE, ORANGE), strict=True):
        right = 100 * seen.softmax(-1)[range(len(ids)), ids].cpu()
        axes.barh(torch.arange(len(ids)) + shift, right, 0.38, color=colour, label=name)
    said = f"{host.upper()}, blend {alpha:g}: logits differ by {(logits[EMBEDS] - logits['blend']).abs().max():.3g} at most"
    axes.set_yticks(range(len(ids)), bench.tokenizer.convert_ids_to_tokens(ids.tolist()))
    axes.set(xlim=(0, 105), ylim=(len(ids) - 0.4, -0.6), xlabel="probability (%)", title=said)
    axes.figure.legend(loc="outside lower center", ncols=2)
    return f"{said}. Bars of the probability of each word of '{sentence}'."


explore("blend α", (0, 0.25, 0.5, 0.75, 1), frame, height=4.2, sentence=bench.unseen.texts[:8], host=bench.hosts)

# %% [markdown]
# ## Try it on yours
#
# The instrument needs a model and some tokens of its width. Set the parameter `yours` to a folder or a hub name, such as
# `google-t5/t5-small`; without one, it is the book's own T5.

# %%
model = (mine or bench.host("t5", seed=0)).eval()
tokens = torch.randn(2, 16, model.get_input_embeddings().embedding_dim)
compare_routes(route_logits(model, tokens, labels=torch.ones(2, 5, dtype=torch.long)), model.get_encoder())

# %% [markdown]
# ## Provenance

# %% tags=["remove-input"]
run.measure(cost_t5=cost("t5"), cost_bart=cost("bart"), equal_runs=equal, floor_bleu=bench.floors.constant)
run.close()
