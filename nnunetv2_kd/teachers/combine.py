"""Combine several teachers into one, as in limit-trained multi-teacher distillation, arXiv 2303.09494. How they are
combined there is not public, so everything here is ours: probabilities and affinities are mixed, never logits or
features."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from nnunetv2_kd.config import Rule
from nnunetv2_kd.regions import at_grid
from nnunetv2_kd.tensors.blockwise import over_voxels
from nnunetv2_kd.tensors.shapes import require_equal


def voxel_weights(
    rule: Rule,
    probabilities: Sequence[Tensor],
    membership: Tensor,
    base: Tensor,
    tau: float = 1.0,
    sigmoid: bool = False,
) -> Tensor:
    """Weight of each teacher at every voxel (ours).

    * ``mean``: the base weights;
    * ``confidence``: base times ``exp(-CE(p_m, y) / tau)``, normalised; with sigmoid heads the mean binary
      cross-entropy over regions;
    * ``region``: per sample and region, base times the teacher's soft Dice ``2 sum p m / (sum p + sum m)``, normalised;
      a voxel takes the weights of its region, or their mean if it belongs to several.

    Voxels in no region take the base weights, because no label says which teacher is right. So does a region that no
    teacher predicts.

    Args:
        rule: one of the three.
        probabilities: per teacher ``(B, K, *S)`` in [0, 1].
        membership: ``(B, R, *S)`` in [0, 1], from the labels: ``R = K``, or ``R = 1 + K`` with the background first
            where the heads are overlapping regions.
        base: ``(M,)``, at least 0, normalised here: the user's weight of every teacher.
        tau: above 0; the smaller, the more the best teacher dominates.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        ``(M, B, 1, *S)`` float32 of sum 1 over teachers, no gradient.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"expected one of {', '.join(get_args(Rule))}, got {rule!r}")
    if tau <= 0:
        raise ValueError(f"expected tau above 0, got {tau}")
    _check_teachers(probabilities, base)
    expected = (len(membership), membership.shape[1] - sigmoid, *membership.shape[2:])
    if tuple(probabilities[0].shape) != expected:
        raise ValueError(
            f"expected probabilities that match the membership, got {tuple(probabilities[0].shape)} and "
            f"{tuple(membership.shape)}"
        )
    membership = membership.detach().float()
    base = _normalise(base.detach().float()).view(-1, *[1] * membership.ndim)
    inside = (membership.sum(dim=1, keepdim=True) > 0).unsqueeze(0)
    if rule == "confidence":
        right = torch.stack([-_cross_entropy(p.detach().float(), membership, sigmoid) / tau for p in probabilities])
        weights = (base.log() + right).softmax(dim=0)
    elif rule == "region":
        dice = torch.stack([_region_dice(p.detach().float(), membership, sigmoid) for p in probabilities])
        base_of_regions = base.view(-1, 1, 1).expand_as(dice)
        of_regions = _normalise(base_of_regions * dice, otherwise=base_of_regions)
        total = membership.sum(dim=1, keepdim=True)
        shares = membership / torch.where(total > 0, total, 1)
        weights = torch.stack([torch.einsum("br,br...->b...", w, shares).unsqueeze(1) for w in of_regions])
    else:
        weights = base
    return torch.where(inside, weights, base)


def region_weights(weights: Tensor, membership: Tensor, base: Tensor) -> Tensor:
    """Weight of each teacher in every region: the mean of the voxels' weights in it (ours).

    Args:
        weights: ``(M, B, 1, *S)`` from `voxel_weights`.
        membership: ``(B, R, *S')`` in [0, 1], ``S'`` at least ``S``.
        base: ``(M,)``, at least 0, normalised here; the weights in an absent region.

    Returns:
        ``(M, B, R)`` float32 of sum 1 over teachers.
    """
    if weights.shape[1] != len(membership) or weights.ndim != membership.ndim + 1:
        raise ValueError(
            f"expected weights and membership of the same batch, got {tuple(weights.shape)} and "
            f"{tuple(membership.shape)}"
        )
    if base.shape != weights.shape[:1]:
        raise ValueError(f"expected a base weight per teacher, got {tuple(base.shape)} and {tuple(weights.shape)}")
    regions = at_grid(membership.detach().float(), weights.shape[3:]).flatten(2)
    mass = regions.sum(dim=2)
    sums = over_voxels(weights[:, :, 0].flatten(2).transpose(0, 1), regions).transpose(0, 1)
    otherwise = _normalise(base.detach().float()).view(-1, 1, 1)
    return torch.where(mass > 0, sums / torch.where(mass > 0, mass, 1), otherwise)


def mix(probabilities: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The mean of the teachers' probabilities, weighted at every voxel (ours).

    Args:
        probabilities: per teacher ``(B, K, *S)`` in [0, 1].
        weights: ``(M, B, 1, *S)`` of sum 1 over teachers.

    Returns:
        ``(B, K, *S)`` float32 in [0, 1], no gradient.

    >>> first, second = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    >>> weights = torch.tensor([0.75, 0.25]).view(2, 1, 1, 1, 1)
    >>> mix([p.view(1, 2, 1, 1) for p in (first, second)], weights).flatten()
    tensor([0.8000, 0.2000])
    """
    first = probabilities[0]
    _check_teachers(probabilities, weights[:, 0, 0].flatten(1)[:, 0])
    if weights.shape[1:] != (len(first), 1, *first.shape[2:]):
        raise ValueError(
            f"expected weights with one channel at the grid of the probabilities, got {tuple(weights.shape)} and "
            f"{tuple(first.shape)}"
        )
    mixed = torch.zeros_like(first, dtype=torch.float32)
    for weight, p in zip(weights, probabilities, strict=True):
        mixed += weight * p.detach().float()
    return mixed


def mix_known(
    probabilities: Sequence[Tensor], known: Sequence[Sequence[int]], weights: Sequence[float], sigmoid: bool
) -> Tensor:
    """Mix teachers that know different structures: each structure is the weighted mean of those that know it (ours).

    Where probabilities of exclusive structures add up to more than 1, they are divided by their sum.

    Args:
        probabilities: per teacher ``(B, U_m, *S)`` in [0, 1], of the structures that it knows.
        known: per teacher, the numbers of these structures in ascending order.
        weights: one per teacher, at least 0; for every structure, the weights of those that know it sum to more than 0.
        sigmoid: whether the structures are overlapping regions.

    Returns:
        ``(B, U, *S)`` float32 in [0, 1] of all structures that any teacher knows, in ascending order; no gradient.
    """
    mixed = []
    for structure in sorted({number for own in known for number in own}):
        experts = [
            (weight, p[:, list(own).index(structure)])
            for p, own, weight in zip(probabilities, known, weights, strict=True)
            if structure in own
        ]
        total = sum(weight for weight, _ in experts)
        mixed.append(torch.stack([weight / total * p.detach().float() for weight, p in experts]).sum(dim=0))
    whole = torch.stack(mixed, dim=1)
    return whole if sigmoid else whole / whole.sum(dim=1, keepdim=True).clamp(min=1)


def as_logits(probabilities: Tensor, sigmoid: bool) -> Tensor:
    """Logits whose softmax (or sigmoid) is these probabilities, so that every term on logits can use a mixture.

    Args:
        probabilities: ``(B, K, *S)`` in [0, 1], of sum 1 over classes unless ``sigmoid``.
        sigmoid: whether the heads are overlapping regions.

    Returns:
        ``(B, K, *S)`` float32, finite: probabilities below 1e-12 are treated as 1e-12.
    """
    p = probabilities.float()
    logits = p.clamp(min=1e-12).log()
    return logits - (1 - p).clamp(min=1e-12).log() if sigmoid else logits


def mean_affinity(matrices: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The mean of the teachers' affinities between regions, each pair weighted by the mean of its regions' weights
    (ours).

    The teachers' channels and grids may differ. The edges of a `region_graph` count as one sample of ``B * K`` regions.

    Args:
        matrices: per teacher ``(B, R, R)``.
        weights: ``(M, B, R)`` of sum 1 over teachers.

    Returns:
        ``(B, R, R)`` float32, no gradient.
    """
    _check_teachers(matrices, weights[:, 0, 0])
    if weights.shape[1:] != matrices[0].shape[:2]:
        raise ValueError(f"expected a weight per region, got {tuple(weights.shape)} and {tuple(matrices[0].shape)}")
    mean = torch.zeros_like(matrices[0], dtype=torch.float32)
    for weight, matrix in zip(weights, matrices, strict=True):
        mean += (weight.unsqueeze(1) + weight.unsqueeze(2)) / 2 * matrix.detach().float()
    return mean


def _check_teachers(tensors: Sequence[Tensor], base: Tensor) -> None:
    if base.shape != (len(tensors),):
        raise ValueError(f"expected one weight for each of {len(tensors)} teachers, got {tuple(base.shape)}")
    for other in tensors[1:]:
        require_equal(tensors[0], other, "the teachers' tensors")


def _normalise(weights: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """Weights divided by their sum along the first dimension; ``otherwise`` where the sum is 0."""
    total = weights.sum(dim=0, keepdim=True)
    normalised = weights / torch.where(total > 0, total, 1)
    if otherwise is not None:
        return torch.where(total > 0, normalised, otherwise)
    if bool((weights < 0).any()) or not bool((total > 0).all()):
        raise ValueError(f"expected weights of at least 0 and a sum above 0, got {weights.tolist()}")
    return normalised


def _cross_entropy(p: Tensor, membership: Tensor, sigmoid: bool) -> Tensor:
    """``(B, 1, *S)``, at least 0."""
    on = p.clamp(min=1e-12).log()
    if not sigmoid:
        return -(membership * on).sum(dim=1, keepdim=True)
    truth = membership[:, 1:]
    return -(truth * on + (1 - truth) * (1 - p).clamp(min=1e-12).log()).mean(dim=1, keepdim=True)


def _region_dice(p: Tensor, membership: Tensor, sigmoid: bool) -> Tensor:
    """A teacher's soft Dice per sample and region over labelled voxels ``(B, R)``."""
    if sigmoid:
        p = torch.cat((1 - p.amax(dim=1, keepdim=True), p), dim=1)
    p = p * (membership.sum(dim=1, keepdim=True) > 0)
    total = (p + membership).flatten(2).sum(dim=2)
    return 2 * (p * membership).flatten(2).sum(dim=2) / torch.where(total > 0, total, 1)
