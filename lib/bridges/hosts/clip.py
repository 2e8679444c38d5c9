"""Frozen CLIP towers: what turns a reader's images and captions into patch features and text vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

BATCH = 32


@dataclass(frozen=True)
class Towers:
    """A frozen CLIP with what prepares its inputs."""

    model: Any  # a CLIPModel, whose typing knows neither its parts nor what from_pretrained can return
    processor: Any
    tokenizer: Any

    def save(self, folder: Path) -> None:
        """Write the model, its image processor and its tokenizer, as `load` and `from_pretrained` find them."""
        for part in (self.model, self.processor, self.tokenizer):
            part.save_pretrained(folder)

    @torch.no_grad()
    def patches(self, images: Iterable[Image.Image]) -> Float[Tensor, "images patches width"]:
        """The vision tower's last layer, class token first: (N, 577, 1024) for ViT-L/14 at 336 pixels."""
        images, found = iter(images), []
        with tqdm(desc="encoding images", unit=" images", leave=False) as bar:
            while batch := list(islice(images, BATCH)):
                pixels = self.processor(images=batch, return_tensors="pt")["pixel_values"].to(self.model.device)
                found.append(self.model.vision_model(pixel_values=pixels).last_hidden_state.float().cpu())
                bar.update(len(batch))
        return torch.cat(found)

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> Float[Tensor, "captions width"]:
        """CLIP's projected text vectors, not normalised; what is longer than CLIP reads is cut."""
        found, longest = [], self.model.config.text_config.max_position_embeddings
        for start in tqdm(range(0, len(captions), BATCH), desc="encoding captions", leave=False):
            batch = list(captions[start : start + BATCH])
            ids = self.tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(
                self.model.device
            )
            pooled = self.model.text_model(**ids).pooler_output
            found.append(self.model.text_projection(pooled).float().cpu())
        return torch.cat(found)


def build(captions: Iterable[str]) -> Towers:
    """A small CLIP from a configuration, freshly initialised, for images of 32 pixels and the words of these captions.

    Nothing about it is trained: it stands in for a real one where only the way through the code is wanted. `save` puts
    it into a folder from which `load` reads it like any other.
    """
    words = sorted({word for caption in captions for word in caption.replace(",", " , ").split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<bos>", "<eos>", *words])}
    by_word = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    by_word.pre_tokenizer = Whitespace()
    by_word.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)])
    special = {name: f"<{name[:3]}>" for name in ("pad_token", "unk_token", "bos_token", "eos_token")}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3}
    config = CLIPConfig(
        text_config=tower | text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=24
    )
    return Towers(
        CLIPModel(config).eval().requires_grad_(False),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        PreTrainedTokenizerFast(tokenizer_object=by_word, model_max_length=64, **special),
    )


def load(name: str) -> Towers:
    """A CLIP from a local folder or a hub name, frozen, in evaluation mode.

    Raises:
        OSError: in one line, when the folder or name holds no such model or cannot be reached.
    """
    mend = (
        "give a folder that holds the model, its image processor and its tokenizer, or a hub name that this machine can"
        " reach and whose licence you have accepted"
    )
    try:
        loaded: Any = CLIPModel.from_pretrained(name, output_loading_info=True)
        model, found = loaded
        towers = Towers(
            model.eval().requires_grad_(False),
            CLIPImageProcessorPil.from_pretrained(name),
            AutoTokenizer.from_pretrained(name),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise OSError(f"no CLIP could be loaded from {name!r}: {mend}") from error
    missing = [key for key in found["missing_keys"] if "position_ids" not in key]
    if missing:  # transformers would fill them with random numbers
        raise OSError(f"{name!r} lacks {len(missing)} weights of a CLIP, {missing[0]} among them: {mend}")
    return towers
