"""Check that shapes agree, so that nothing is silently broadcast."""

from torch import Tensor


def require_equal(first: Tensor, second: Tensor, what: str) -> None:
    """Raise a ValueError that names both shapes, if they differ."""
    if first.shape != second.shape:
        raise ValueError(f"expected {what} of equal shape, got {tuple(first.shape)} and {tuple(second.shape)}")


def require_same_batch(first: Tensor, second: Tensor, what: str) -> None:
    """Raise a ValueError that names both shapes, if the numbers of samples or of dimensions differ."""
    if len(first) != len(second) or first.ndim != second.ndim:
        raise ValueError(
            f"expected {what} with equally many samples and dimensions, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )


def valid_voxels(valid: Tensor | None, logits: Tensor) -> Tensor:
    """The one-channel mask of voxels that count, at the grid of the logits; all True if no mask is given.

    Args:
        valid: ``(B, 1, *S)`` bool or None.
        logits: ``(B, K, *S)``.

    Returns:
        ``(B, 1, *S)`` bool.

    Raises:
        ValueError: if the mask has another shape.
    """
    if valid is None:
        return logits.new_ones((len(logits), 1, *logits.shape[2:])).bool()
    if valid.shape != (len(logits), 1, *logits.shape[2:]):
        raise ValueError(
            f"expected a mask with one channel at the grid of the logits, got {tuple(valid.shape)} and "
            f"{tuple(logits.shape)}"
        )
    return valid.bool()
