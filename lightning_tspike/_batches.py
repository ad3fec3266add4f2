"""What data loaders and networks hand over: images, targets and logits, in whichever of the usual forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["LOGITS", "first_images", "images_of", "logits_of", "targets_of"]

_IMAGES = ("frames", "image", "images", "img", "input", "inputs", "pixel_values", "x")
_TARGETS = ("label", "labels", "target", "targets", "y")
LOGITS = {"logits", "out"}
"""Keys under which a model gives its logits."""
_BATCH = (
    "a batch is (images, targets), (images, targets, something else), or a dict with one of the keys "
    f"{', '.join(_IMAGES)} and one of {', '.join(_TARGETS)}"
)


def images_of(batch: object, dtype: torch.dtype | None = None) -> Tensor:
    """The images of a batch, checked.

    Args:
        batch: Images alone; a tuple or list that begins with them; or a dict with one of the usual keys for them.
        dtype: What to turn them into, the network's; None for the type that they have.

    Returns:
        Images [B, C, H, W], frames [B, T, C, H, W], or whatever else the network takes.

    Raises:
        ValueError: The batch has no images, or they are whole numbers, NaN or infinite.
    """
    images, _ = _split(batch)
    if not isinstance(images, Tensor) or images.ndim == 0:
        raise ValueError(f"the images of a batch must be a tensor, got {_describe(images)}; {_BATCH}")
    if not images.is_floating_point() and images.dtype != torch.bool:
        raise ValueError(
            f"the images are {_describe(images)}, expected floating-point numbers like those that the network is "
            "trained on: scale pixels by torchvision's ToTensor() or v2.ToDtype(torch.float32, scale=True), and turn "
            "counts of events into numbers by .float()"
        )
    images = images.to(dtype or (images.dtype if images.is_floating_point() else torch.get_default_dtype()))
    # A NaN would vanish without a trace: a neuron whose membrane potential is NaN never fires.
    if not images.isfinite().all():
        bad = (~images.isfinite()).reshape(len(images), -1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"the batch holds NaN or infinite values, in samples {bad} of {len(images)} (shape {tuple(images.shape)}); "
            "look for damaged files or a division by zero in the preprocessing"
        )
    return images


def first_images(batches: Iterable[object], count: int, dtype: torch.dtype | None = None) -> Tensor | None:
    """The first images of a loader.

    Args:
        batches: As :func:`images_of` takes them; no more of them are asked for than are needed.
        count: How many images; fewer where there are no more.
        dtype: As for :func:`images_of`.

    Returns:
        [count, C, H, W], or frames [count, T, C, H, W]; None where there is no batch.
    """
    parts: list[Tensor] = []
    for batch in batches:
        parts.append(images_of(batch, dtype))
        if sum(map(len, parts)) >= count:
            break
    return torch.cat(parts)[:count] if parts else None


def targets_of(batch: object, num_classes: int) -> Tensor:
    """The targets of a batch, checked, in one of the two forms that a cross-entropy takes.

    Args:
        batch: A pair (images, targets), a triple that begins so, or a dict with one of the usual keys for them. Targets
            are classes [B] or [B, 1] of any integer type; one class in each row [B, K] of integers 0 and 1 (one-hot);
            or probabilities [B, K], floating-point rows that sum to 1.
        num_classes: Number of classes K.

    Returns:
        Classes [B], int64, or probabilities [B, K].

    Raises:
        ValueError: The batch has no targets, or they are none of these: out of range, several classes at once.
    """
    images, targets = _split(batch)
    if targets is None:
        # of four parts or more, several may be targets: those of mixed images
        found = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else _describe(batch)
        raise ValueError(f"the batch has no targets that are told from the rest, got {found}; {_BATCH}")
    size = len(images)
    if not isinstance(targets, Tensor):
        raise ValueError(f"the targets of a batch must be a tensor, got {_describe(targets)}; {_BATCH}")
    if num_classes > 1 and targets.shape == (size, num_classes):
        return _rows(targets)
    if targets.shape not in ((size,), (size, 1)) or targets.is_floating_point() or targets.is_complex():
        raise ValueError(
            f"the targets are {_describe(targets)} for {size} images; expected classes [{size}] of an integer type, "
            f"or one-hot rows or probabilities [{size}, {num_classes}], where {num_classes} is num_classes and must be "
            "the number of classes of the data"
        )
    targets = targets.flatten().long()
    low, high = map(int, targets.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels run from {low} to {high}, expected 0 to {num_classes - 1}; "
            "set num_classes to the number of classes of the data"
        )
    return targets


def logits_of(output: object) -> Tensor:
    """The logits in what a model returns.

    Args:
        output: The logits themselves; an object with an attribute ``logits`` (Hugging Face's outputs, the named tuples
            of torchvision's GoogLeNet in training); a dict with a key ``logits`` or ``out``; or a tuple or list that
            holds one matrix [N, K].

    Raises:
        ValueError: It is something else.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits
    if isinstance(output, Mapping):
        found = [output[key] for key in LOGITS if isinstance(output.get(key), Tensor)]
    else:
        parts = output if isinstance(output, (tuple, list)) else ()
        found = [part for part in parts if isinstance(part, Tensor) and part.ndim == 2]
    if len(found) != 1:
        raise ValueError(
            "the model must return logits [N, K], alone, as the one matrix of a tuple, or under the name 'logits' of a "
            f"dict or an object; it returned {_describe(output)}: wrap it in a module whose forward picks them"
        )
    return found[0]


def _split(batch: object) -> tuple[Any, Any]:
    """Images and targets; None for targets that are missing or cannot be told from the rest."""
    if isinstance(batch, Mapping):
        return _under_one_key(batch, _IMAGES), _under_one_key(batch, _TARGETS, missing=None)
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0], batch[1] if len(batch) in (2, 3) else None
    return batch, None


def _under_one_key(batch: Mapping[Any, Any], keys: Sequence[str], **default: Any) -> Any:
    found = [key for key in keys if key in batch]
    if not found and default:
        return default["missing"]
    if len(found) != 1:
        problem = f"has several of these keys: {', '.join(found)}" if found else "has none of the keys for images"
        raise ValueError(f"the batch {problem}; it holds {_describe(batch)}; {_BATCH}")
    return batch[found[0]]


def _rows(targets: Tensor) -> Tensor:
    """Probabilities [B, K] as they are, one-hot rows [B, K] as classes [B]."""
    is_real = targets.is_floating_point()
    values = targets if is_real else targets.long()
    off = (values.sum(1, dtype=torch.float32 if is_real else None) - 1).abs()
    # half-precision probabilities are rounded to 1 in 256 of each
    is_wrong = (off > (0.01 if is_real else 0)) | (values < 0).any(1) | ~off.isfinite()
    if is_wrong.any():
        row = int(is_wrong.nonzero()[0])
        raise ValueError(
            f"row {row} of the targets sums to {values[row].sum().item():g} with {int((values[row] > 0).sum())} values "
            "above 0: it is neither one class (one-hot) nor probabilities, which sum to 1. Several classes at once "
            "(multi-label) are not supported by the cross-entropy: subclass TernarySNNModule and override "
            "training_step, validation_step and test_step with another loss, such as "
            "torch.nn.functional.binary_cross_entropy_with_logits"
        )
    return values if is_real else values.argmax(1)


def _describe(value: object) -> str:
    """What something is, in a few words for an error message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} with the keys {', '.join(map(repr, value)) or 'none'}"
    if isinstance(value, (tuple, list)):
        parts = ", ".join(map(_describe, value[:4])) + (", ..." if len(value) > 4 else "")
        return f"a {kind} of {len(value)} ({parts})"
    return f"a {kind}"
