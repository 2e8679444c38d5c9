"""Batches by name, as models are called with them, and what comes out of a module or a model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def samples(batch: Mapping[str, Any]) -> int:
    """How many samples a batch holds: as many as it has labels, texts, or rows of its first tensor."""
    named = [batch[name] for name in ("labels", "input_ids") if batch.get(name) is not None]
    tensors = [x for x in batch.values() if isinstance(x, Tensor) and x.dim()]
    if not (named or tensors):
        raise ValueError("the batch holds no tensor: give the arguments of the model's call by name, labels among them")
    return len((named or tensors)[0])


def take(batch: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The batch of the samples `rows`.

    Raises:
        ValueError: for a tensor whose first dimension holds no equal share for each sample.
    """
    count, taken = samples(batch), {}
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.dim():
            each, rest = divmod(len(value), count)
            if rest:
                raise ValueError(
                    f"{name} has {len(value)} rows for {count} samples: give samples with equally many places each"
                )
            index = rows.to(value.device)
            value = value[index] if each == 1 else value.unflatten(0, (count, each))[index].flatten(0, 1)
        elif isinstance(value, list | tuple) and len(value) == count:
            value = [value[row] for row in rows.tolist()]
        taken[name] = value
    return taken


def loss_of(output: Any) -> Tensor:
    """The loss in what a model's call returns.

    Raises:
        ValueError: when there is none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    loss = loss[0] if isinstance(loss, tuple) and loss else loss
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError("the model's call on the batch gives no loss of one number: put labels into the batch")
    return loss.reshape(())


def shared(found: Tensor, count: int) -> bool:
    """Whether one row stands for all samples, as PEFT's prompt does."""
    return found.dim() > 1 and len(found) == 1 < count


def each(found: Tensor, count: int) -> Tensor:
    """What is read or given (N, places, width), of `count` samples.

    Raises:
        ValueError: when samples have not equally many places.
    """
    if shared(found, count):
        found = found.expand(count, *found.shape[1:])
    if len(found) % count and found[..., 0].numel() % count:
        raise ValueError(
            f"the connector's tensor has the shape {tuple(found.shape)} for {count} samples: give samples with equally"
            " many places each"
        )
    return found.reshape(count, -1, found.shape[-1])


def tensor_of(output: Any) -> Tensor:
    """The tensor that a module returns, the first of several.

    Raises:
        ValueError: when there is none.
    """
    found = output if isinstance(output, Tensor) else output[0]
    if not isinstance(found, Tensor):
        raise ValueError(f"the connector returns a {type(output).__name__}: name a module that returns a tensor")
    return found
