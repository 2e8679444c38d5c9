"""A world of sentences and their pictures, and small frozen hosts that put into order the words that they are shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

PAD, BOS, EOS, SEP, ONE, IN = range(6)
SLOTS, EACH, FIRST = 4, 7, 12  # words of a sentence, choices for each, the first one's id; 6 to 11 are a prompt's
WORDS, WIDE, DIM, PATCHES, PLACES = FIRST + SLOTS * EACH, 24, 48, 5, 6
HOSTS, TEACHING = 3, 900  # hosts of each kind that seeds take in turn, and the steps of their training
SPEAKERS = ("llama", "t5")


@dataclass(frozen=True)
class World:
    """Ids of `count` prompts, their mask, features (count, 5, 24) and sentences (count, 7), all drawn by `seed`."""

    prompts: Tensor
    mask: Tensor
    features: Tensor
    sentences: Tensor


def world(count: int, seed: int, side: str = "left") -> World:
    """Draw pictures and sentences `one W W in W W <end>`, and prompts of one to four ids, padded on `side`."""
    fixed, draw = torch.Generator().manual_seed(77), torch.Generator().manual_seed(seed)
    looks = torch.randn(SLOTS, EACH, WIDE, generator=fixed)
    chosen = torch.randint(EACH, (count, SLOTS), generator=draw)
    features = 0.3 * torch.randn(count, PATCHES, WIDE, generator=draw)
    for slot in range(SLOTS):
        features[:, slot] += looks[slot, chosen[:, slot]]
    words = chosen + FIRST + EACH * torch.arange(SLOTS)
    one, between, end = (torch.full((count, 1), i) for i in (ONE, IN, EOS))
    sentences = torch.cat([one, words[:, :2], between, words[:, 2:], end], 1)
    length = torch.randint(1, 5, (count, 1), generator=draw)
    asked = torch.randint(6, FIRST, (count, 4), generator=draw)
    place = torch.arange(4) - (4 - length if side == "left" else 0)
    there = (place >= 0) & (place < length)
    prompts = torch.where(place == 0, BOS, asked).where(there, PAD)
    return World(prompts, there.long(), features, sentences)


def _shown(sentences: Tensor) -> Tensor:
    """Six ids in any order, the four words of the sentence among them: what the hosts learn to put in order."""
    ids = torch.cat([sentences[:, [1, 2, 4, 5]], torch.randint(6, FIRST, (len(sentences), PLACES - SLOTS))], 1)
    return ids.gather(1, torch.rand(ids.shape).argsort(1))


def small_host(kind: str, number: int, hosts: Path) -> Any:
    """A frozen Llama or T5 that says the words it is shown in order: from the folder `hosts`, or trained and put there.

    Raises:
        ValueError: for another kind.
    """
    if kind not in SPEAKERS:
        raise ValueError(f"host {kind!r} is unknown; choose from {', '.join(SPEAKERS)}")
    torch.manual_seed(number)
    shape: dict[str, Any] = {"vocab_size": WORDS, "pad_token_id": PAD, "eos_token_id": EOS}
    host: Any
    if kind == "llama":
        plan = cast(Any, LlamaConfig)(
            **shape, hidden_size=DIM, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=64, bos_token_id=BOS, attention_dropout=0.2,
            attn_implementation="eager",
        )  # fmt: skip
        host = LlamaForCausalLM(plan)
    else:
        t5 = cast(Any, T5Config)(
            **shape, d_model=DIM, d_kv=12, d_ff=112, num_layers=2, num_heads=4, decoder_start_token_id=PAD
        )
        host = T5ForConditionalGeneration(t5)
    path = hosts / f"{kind}-{number}.safetensors"
    if path.is_file():
        load_model(host, path)
        return host.eval().requires_grad_(False)
    host.eval()  # without dropout: it is small enough to need none
    optimizer = AdamW(host.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(TEACHING):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, step / 50, (TEACHING - step) / 300)
        drawn = world(64, 10_000 + step)
        ids = torch.cat([drawn.prompts, _shown(drawn.sentences)], 1)
        mask = torch.cat([drawn.mask, drawn.mask.new_ones(len(ids), PLACES)], 1)
        if kind == "t5":
            loss = host(input_ids=ids, attention_mask=mask, labels=drawn.sentences).loss
        else:
            ids = torch.cat([ids, ids.new_full((len(ids), 1), SEP), drawn.sentences], 1)
            mask = torch.cat([mask, mask.new_ones(len(ids), 1 + drawn.sentences.shape[1])], 1)
            found = host(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0))
            told = found.logits[:, -drawn.sentences.shape[1] - 1 : -1]
            loss = cross_entropy(told.flatten(0, 1), drawn.sentences.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hosts.mkdir(parents=True, exist_ok=True)
    save_model(host, str(path))
    return host.eval().requires_grad_(False)
