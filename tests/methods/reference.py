"""The formulas of nnunetv2_kd.methods again, in float64 NumPy, with plain loops over samples, classes and voxels.
Written from docs/formulas.md and not from the torch code."""

import itertools

import numpy as np

Array = np.ndarray


def log_softmax(z: Array, axis: int) -> Array:
    shifted = z - z.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def divergence(z_s: Array, z_t: Array, temperature: float, use_sigmoid: bool) -> Array:
    z_s, z_t = z_s.astype(np.float64) / temperature, z_t.astype(np.float64) / temperature
    if use_sigmoid:
        p_s, p_t = sigmoid(z_s), sigmoid(z_t)
        kl = p_t * np.log(p_t / p_s) + (1 - p_t) * np.log((1 - p_t) / (1 - p_s))
    else:
        log_s, log_t = log_softmax(z_s, 1), log_softmax(z_t, 1)
        kl = np.exp(log_t) * (log_t - log_s)
    return temperature**2 * kl.sum(axis=1)


def voxel_kl(z_s: Array, z_t: Array, valid: Array | None, temperature: float, use_sigmoid: bool) -> float:
    kl = divergence(z_s, z_t, temperature, use_sigmoid)
    if valid is None:
        return float(kl.mean())
    kept = kl[valid[:, 0]]
    return float(kept.mean()) if kept.size else 0.0


def soft_membership(z: Array, use_sigmoid: bool) -> Array:
    if not use_sigmoid:
        return np.exp(log_softmax(z.astype(np.float64), 1))
    p = sigmoid(z.astype(np.float64))
    return np.concatenate((1 - p.max(axis=1, keepdims=True), p), axis=1)


def region_kl(z_s: Array, z_t: Array, membership: Array | None, temperature: float, use_sigmoid: bool) -> float:
    kl = divergence(z_s, z_t, temperature, use_sigmoid)
    m = soft_membership(z_t, use_sigmoid) if membership is None else membership.astype(np.float64)
    total = counted = 0.0
    for k in range(m.shape[1]):
        mass = m[:, k].sum()
        if mass > 0:
            share = min(mass, 1.0)  # a region of less than one voxel counts by its mass
            total += share * (m[:, k] * kl).sum() / mass
            counted += share
    return total / counted if counted else 0.0


def importance_map(features: Array) -> Array:
    energy = (features.astype(np.float64) ** 4).mean(axis=1).reshape(len(features), -1)
    norm = np.linalg.norm(energy, axis=1, keepdims=True)
    return energy / np.where(norm > 0, norm, 1)


def importance_map_loss(f_s: Array, f_t: Array) -> float:
    return float(((importance_map(f_s) - importance_map(f_t)) ** 2).sum(axis=1).mean())


def area_average(m: Array, factor: int) -> Array:
    """Mean over cells of ``factor`` voxels a side."""
    spatial = m.shape[2:]
    split = [n for side in spatial for n in (side // factor, factor)]
    axes = tuple(range(3, 2 + 2 * len(spatial), 2))
    return m.reshape(*m.shape[:2], *split).mean(axis=axes)


def region_vectors(features: Array, m: Array) -> list[dict[int, Array]]:
    """Per sample the mean feature vector of every region that has a voxel."""
    vectors = []
    for f, regions in zip(features.astype(np.float64), m.astype(np.float64), strict=True):
        flat = f.reshape(len(f), -1)
        vectors.append(
            {k: flat @ r.ravel() / r.sum() for k, r in enumerate(regions) if r.sum() > 0},
        )
    return vectors


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def region_affinity(f_s: Array, f_t: Array, m_s: Array, m_t: Array) -> float:
    per_sample = []
    for r_s, r_t in zip(region_vectors(f_s, m_s), region_vectors(f_t, m_t), strict=True):
        pairs = list(itertools.combinations(sorted(r_s), 2))
        squares = [(cosine(r_s[i], r_s[j]) - cosine(r_t[i], r_t[j])) ** 2 for i, j in pairs]
        per_sample.append(np.mean(squares) if squares else 0.0)
    return float(np.mean(per_sample))
