"""Where models keep their connector: a table of classes, and the parts at a path."""

from collections.abc import Sequence
from typing import Any

from torch import nn

# Where transformers' and PEFT's classes keep their connector. Of several paths in one place, with "|", the first that
# is there counts; of several places, in the order of their calls, the host reads what the last one gives.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "LlavaForConditionalGeneration": ("model.multi_modal_projector",),
    "LlavaNextForConditionalGeneration": ("model.multi_modal_projector",),
    "Blip2ForConditionalGeneration": ("query_tokens", "qformer", "language_projection"),
    "InstructBlipForConditionalGeneration": ("query_tokens", "qformer", "language_projection"),
    "Idefics2ForConditionalGeneration": ("model.connector",),
    "Idefics3ForConditionalGeneration": ("model.connector",),
    "PaliGemmaForConditionalGeneration": ("model.multi_modal_projector",),
    "Gemma3ForConditionalGeneration": ("model.multi_modal_projector",),
    "Qwen2VLForConditionalGeneration": ("model.visual.merger",),
    "Qwen2AudioForConditionalGeneration": ("model.multi_modal_projector|multi_modal_projector",),
    "VisionEncoderDecoderModel": ("enc_to_dec_proj|encoder",),
    "PeftModel": ("prompt_encoder.default",),
}


def layout(model: nn.Module) -> tuple[str, ...]:
    """The places of the connector in a class of the table.

    Raises:
        ValueError: for a class that is not there, with paths that are likely.
    """
    names = [kind.__name__ for kind in type(model).__mro__]
    found = next((LAYOUTS[name] for name in names if name in LAYOUTS), None)
    if found is None:
        words = ("project", "connector", "resampler", "qformer", "bridge", "merger", "adapter", "prompt_encoder")
        like = [name for name, _ in model.named_modules() if any(word in name.rpartition(".")[2] for word in words)]
        hint = f", such as {', '.join(like[:3])}" if like else ""
        raise ValueError(
            f"where {names[0]} keeps its connector is not known: name the module's path{hint}, as connector="
        )
    return found


def paths_in(model: nn.Module, paths: Sequence[str]) -> tuple[str, ...]:
    """The paths that are there, one of each place.

    Raises:
        ValueError: for a place where there is none.
    """
    found = []
    for place in paths:
        there = [path for path in place.split("|") if part_at(model, path) is not None]
        if not there:
            top = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"{type(model).__name__} has no part {place!r}: give a module's path; at its top: {top}")
        found.append(there[0])
    return tuple(found)


def part_at(model: nn.Module, path: str) -> nn.Module | nn.Parameter | None:
    """The module or parameter at a path, or nothing."""
    part: Any = model
    for name in path.split("."):
        part = part[name] if isinstance(part, nn.ModuleDict) and name in part else getattr(part, name, None)
    return part if isinstance(part, nn.Module | nn.Parameter) else None
