"""The embeddings at the scale at which a host hears them: through the module, and behind it where it scales there."""

import pytest
import torch
from bridges.connectors.scale import embedding_rms, embedding_table, rms
from bridges.hosts.causal import spoken_to
from bridges.instruments.soft_prompt import bridge_quality
from bridges.tasks import word_problems
from transformers import (
    BartConfig,
    BartModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianModel,
    MBartConfig,
    MBartModel,
    PegasusConfig,
    PegasusModel,
    PreTrainedModel,
    T5Config,
    T5Model,
)

WIDTH = 16
WORDS = word_problems.tokenizer("target")
CAUSAL = {
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def gemma() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig(**CAUSAL, sliding_window=32)).eval()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**CAUSAL)).eval()


def t5() -> T5Model:
    torch.manual_seed(0)
    return T5Model(T5Config(vocab_size=40, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()


def kin(config: type, model: type, scaled: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    sides = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in SIDE.items()}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    special |= {"forced_eos_token_id": None}
    return model(config(vocab_size=40, d_model=WIDTH, **sides, **special, scale_embedding=scaled)).eval()


SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
KIN = {
    "bart": (BartConfig, BartModel),
    "mbart": (MBartConfig, MBartModel),
    "pegasus": (PegasusConfig, PegasusModel),
    "marian": (MarianConfig, MarianModel),
}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("family", KIN)
def test_words_told_by_their_embeddings_are_the_words_to_an_encoder(family: str, scaled: bool) -> None:
    host = kin(*KIN[family], scaled)
    ids, table = torch.arange(5, 21)[None], embedding_table(host)
    with torch.no_grad():
        read = host.get_encoder()(input_ids=ids).last_hidden_state
        told = host.get_encoder()(inputs_embeds=table[ids]).last_hidden_state
    assert torch.equal(read, told)
    factor = WIDTH**0.5 if scaled else 1.0
    assert torch.equal(table, host.get_input_embeddings().weight.detach() * factor)


def test_words_told_by_their_embeddings_are_the_words_to_gemma() -> None:
    host, ids = gemma(), torch.arange(5, 21)[None]
    with torch.no_grad():
        assert torch.equal(host(input_ids=ids).logits, host(inputs_embeds=embedding_table(host)[ids]).logits)
    own = rms(host.get_input_embeddings().weight.detach()).mean().item()
    assert embedding_rms(host) == pytest.approx(WIDTH**0.5 * own)
    assert torch.equal(spoken_to(host, None, ids, torch.ones_like(ids))["inputs_embeds"], embedding_table(host)[ids])


@pytest.mark.parametrize("build", [llama, t5])
def test_where_nothing_scales_it_is_the_weight_to_the_last_bit(build: type) -> None:
    host = build()
    weight = host.get_input_embeddings().weight
    table = embedding_table(host)
    assert torch.equal(table, weight)
    assert not table.requires_grad
    assert embedding_rms(host) == rms(weight.detach().float()).mean().item()
    assert embedding_rms(host.bfloat16()) == rms(weight.detach().bfloat16().float()).mean().item()


@pytest.mark.parametrize("build", [llama, gemma])
def test_real_words_as_soft_tokens_are_at_the_hosts_own_scale(build: type) -> None:
    host = build()
    ids = torch.arange(len(WORDS))[None]
    found = bridge_quality(embedding_table(host)[None], host, ids, torch.ones_like(ids), WORDS)
    assert found.embedding_rms == pytest.approx(embedding_rms(host))
    assert found.rms_ratio == pytest.approx(1)
