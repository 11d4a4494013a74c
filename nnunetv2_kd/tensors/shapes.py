"""Shapes that must agree, so that nothing is broadcast in silence."""

from torch import Tensor


def require_equal(first: Tensor, second: Tensor, what: str) -> None:
    """Raises: ValueError naming both shapes where they differ."""
    if first.shape != second.shape:
        raise ValueError(f"expected {what} of equal shape, got {tuple(first.shape)} and {tuple(second.shape)}")


def require_same_batch(first: Tensor, second: Tensor, what: str) -> None:
    """Raises: ValueError naming both shapes where samples or spatial dimensions differ in number."""
    if len(first) != len(second) or first.ndim != second.ndim:
        raise ValueError(
            f"expected {what} of as many samples and dimensions, got {tuple(first.shape)} and {tuple(second.shape)}"
        )


def valid_voxels(valid: Tensor | None, logits: Tensor) -> Tensor:
    """The mask of voxels that count, one channel, at the grid of the logits; all True where none is given.

    Args:
        valid: ``(B, 1, *S)`` bool or None.
        logits: ``(B, K, *S)``.

    Returns:
        ``(B, 1, *S)`` bool.

    Raises:
        ValueError: where the mask is of another shape.
    """
    if valid is None:
        return logits.new_ones((len(logits), 1, *logits.shape[2:])).bool()
    if valid.shape != (len(logits), 1, *logits.shape[2:]):
        raise ValueError(
            f"expected a mask with one channel at the grid of the logits, got {tuple(valid.shape)} and "
            f"{tuple(logits.shape)}"
        )
    return valid.bool()
