"""More of the formulas of nnunetv2_kd.methods in float64 NumPy with plain loops, as in tests/methods/reference.py."""

import itertools

import numpy as np

from tests.methods.reference import Array, cosine, log_softmax, region_vectors, sigmoid


def flat(x: Array) -> Array:
    return x.astype(np.float64).reshape(*x.shape[:2], -1)


def probabilities(z: Array, use_sigmoid: bool) -> Array:
    z = z.astype(np.float64)
    return sigmoid(z) if use_sigmoid else np.exp(log_softmax(z, 1))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def resize(values: Array, size: tuple[int, ...]) -> Array:
    """One map, linearly along each axis, between the centres of voxels, constant beyond the outermost."""
    for axis, n in enumerate(size):
        old = values.shape[axis]
        centres = (np.arange(n) + 0.5) * old / n - 0.5
        values = np.apply_along_axis(lambda line, c=centres, o=old: np.interp(c, np.arange(o), line), axis, values)
    return values


def standardised(values: Array, inside: Array) -> Array:
    mean = np.average(values, weights=inside)
    return (values - mean) / np.sqrt(np.average((values - mean) ** 2, weights=inside))


def activation_map(f: Array, inside: Array) -> Array:
    """Of one sample ``(C, *S)``."""
    active = np.maximum(f.astype(np.float64), 0)
    w = softmax(np.array([np.average(channel, weights=inside) for channel in active]))
    return standardised(sum(w_c * channel for w_c, channel in zip(w, active, strict=True)), inside)


def feature_filtering(f_s: Array, f_t: Array, m_s: Array, m_t: Array, gamma: float) -> float:
    per_region = []
    for b in range(len(f_s)):
        a_t = activation_map(f_t[b], m_t[b].sum(axis=0))
        a_s = activation_map(f_s[b], m_s[b].sum(axis=0))
        if a_s.shape != a_t.shape:
            a_s = standardised(resize(a_s, a_t.shape), m_t[b].sum(axis=0))
        u = np.exp(gamma * np.abs(2 * sigmoid(a_t) - 1))
        u /= u.mean()
        for m in m_t[b]:
            if m.sum() > 0:
                per_region.append(np.average((a_s - a_t) ** 2, weights=u * m))
    return float(np.mean(per_region)) if per_region else 0.0


def region_graph_loss(f_s: Array, f_t: Array, m_s: Array, m_t: Array, hops: int) -> float:
    walks, strengths = [], []
    for f, m in ((f_s, m_s), (f_t, m_t)):
        nodes = [r[k] for r in region_vectors(f, m) for k in sorted(r)]
        n = len(nodes)
        a = np.eye(n)
        for i, j in itertools.permutations(range(n), 2):
            a[i, j] = (cosine(nodes[i], nodes[j]) + 1) / 2
        d = a.sum(axis=1)
        walks.append(np.diag(d**-0.5) @ a @ np.diag(d**-0.5))
        strengths.append(d / d.mean())
    per_hop = [
        ((np.linalg.matrix_power(walks[0], h) - np.linalg.matrix_power(walks[1], h)) ** 2).mean()
        for h in range(1, hops + 1)
    ]
    return float(np.mean(per_hop) + ((strengths[0] - strengths[1]) ** 2).mean())


def variation_values(f: Array, m: Array) -> tuple[Array, Array]:
    """For one sample: per voxel the weighted mean of its cosines to its regions' vectors, and whether it
    has a region."""
    vectors = region_vectors(f[None], m[None])[0]
    values = np.zeros(f.shape[1:])
    for v in np.ndindex(*f.shape[1:]):
        shares = {k: m[(k, *v)] for k in vectors if m[(k, *v)] > 0}
        if shares:
            at_v = f[(slice(None), *v)].astype(np.float64)
            values[v] = sum(s * cosine(at_v, vectors[k]) for k, s in shares.items()) / sum(shares.values())
    return values, np.minimum(m.sum(axis=0), 1)


def intra_class_variation(f_s: Array, f_t: Array, m_s: Array, m_t: Array) -> float:
    total = counted = 0.0
    for b in range(len(f_s)):
        v_s, _ = variation_values(f_s[b], m_s[b])
        v_t, inside = variation_values(f_t[b], m_t[b])
        if v_s.shape != v_t.shape:
            v_s = resize(v_s, v_t.shape)
        total += (inside * (v_s - v_t) ** 2).sum()
        counted += inside.sum()
    return total / counted if counted else 0.0


def channel_wise(z_s: Array, z_t: Array, valid: Array, temperature: float) -> float:
    terms = []
    for s, t, keep in zip(flat(z_s), flat(z_t), flat(valid)[:, 0] > 0, strict=True):
        for k in range(len(s)):
            if not keep.any():
                terms.append(0.0)
                continue
            p_s, p_t = softmax(s[k][keep] / temperature), softmax(t[k][keep] / temperature)
            terms.append(temperature**2 * (p_t * np.log(p_t / p_s)).sum())
    return float(np.mean(terms))


def class_affinity(z_s: Array, z_t: Array, valid: Array, use_sigmoid: bool) -> float:
    cosines = []
    p_s, p_t = (flat(probabilities(z, use_sigmoid)) for z in (z_s, z_t))
    for s, t, keep in zip(p_s, p_t, flat(valid)[:, 0] > 0, strict=True):
        if keep.any():
            g_s, g_t = s[:, keep] @ s[:, keep].T, t[:, keep] @ t[:, keep].T
            cosines += [cosine(g_s[k], g_t[k]) for k in range(len(g_s))]
    return float(1 - np.mean(cosines)) if cosines else 0.0


def soft_dice(z_s: Array, z_t: Array, valid: Array, use_sigmoid: bool) -> float:
    p_s, p_t = probabilities(z_s, use_sigmoid), probabilities(z_t, use_sigmoid)
    total = counted = 0.0
    for k in range(0 if use_sigmoid else 1, z_s.shape[1]):
        s, t = p_s[:, k][valid[:, 0]], p_t[:, k][valid[:, 0]]
        share = min(t.sum(), 1.0)
        total += share * (1 - 2 * (s * t).sum() / ((s**2).sum() + (t**2).sum()))
        counted += share
    return total / max(counted, 1.0)


def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
    """The Jaccard loss if these voxels are predicted wrongly and all others correctly."""
    predicted = truth ^ wrong
    return 1 - len(predicted & truth) / len(predicted | truth)


def lovasz(z_s: Array, z_t: Array, valid: Array, use_sigmoid: bool) -> float:
    p = probabilities(z_s, use_sigmoid)
    terms = []
    for k in range(z_s.shape[1]):
        decided = (z_t[:, k] > 0 if use_sigmoid else z_t.argmax(axis=1) == k)[valid[:, 0]]
        if not decided.any():
            continue
        errors = np.abs(decided - p[:, k][valid[:, 0]])
        truth, wrong, value = set(np.flatnonzero(decided)), set(), 0.0
        for v in np.argsort(-errors):
            before = jaccard_loss(wrong, truth)
            wrong.add(int(v))
            value += errors[v] * (jaccard_loss(wrong, truth) - before)
        terms.append(value)
    return float(np.mean(terms)) if terms else 0.0


def attention(f: Array) -> tuple[Array, Array]:
    """Of one sample ``(C, V)``."""
    spatial = f.shape[1] * softmax(np.abs(f).mean(axis=0) / 0.5)
    return spatial, f.shape[0] * softmax(np.abs(f).mean(axis=1) / 0.5)


def sard(f_s: Array, f_t: Array, m: Array) -> float:
    """Of one sample, every voxel labelled: ``(C, V)`` twice and ``(K, V)``."""
    (s_s, c_s), (s_t, c_t) = attention(f_s), attention(f_t)
    foreground, background = np.zeros(f_t.shape[1]), np.zeros(f_t.shape[1])
    for k, region in enumerate(m):
        if region.sum() > 0:
            (background if k == 0 else foreground)[:] += region / region.sum()
    loss = np.abs(c_s - c_t).mean() + np.abs(s_s - s_t).mean()
    for mask in (foreground, background):
        if mask.sum() > 0:
            weighted = sum(mask[v] * s_t[v] * c_t[c] * (f_s[c, v] - f_t[c, v]) ** 2 for c, v in np.ndindex(*f_t.shape))
            loss += weighted / (len(f_t) * mask.sum())
    return float(loss)


def global_context(f: Array, score: tuple[Array, Array], layers: list[tuple[Array, Array]]) -> Array:
    """Of one sample ``(C, V)``; ``layers`` are the first linear, the layer norm, and the last linear."""
    context = f @ softmax(score[0][0] @ f + score[1])
    hidden = layers[0][0] @ context + layers[0][1]
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5) * layers[1][0] + layers[1][1]
    return f + (layers[2][0] @ np.maximum(hidden, 0) + layers[2][1])[:, None]


def cells(f: Array, foreground: Array, grid: int) -> Array:
    """Of one sample ``(C, *S)``, sides divisible by the grid."""
    out = np.zeros((len(f), *[grid] * foreground.ndim))
    for cell in np.ndindex(*out.shape[1:]):
        box = tuple(slice(i * n // grid, (i + 1) * n // grid) for i, n in zip(cell, foreground.shape, strict=True))
        mass = foreground[box].sum()
        for c in range(len(f)):
            out[(c, *cell)] = (f[(c, *box)] * foreground[box]).sum() / mass if mass > 0 else 0.0
    return out


def smooth_l1(x: Array) -> Array:
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def displacement_difference(e_s: Array, e_t: Array, ratio: float) -> float:
    pairs = list(itertools.combinations(range(len(e_s)), 2))
    scaled = []
    for e in (e_s.astype(np.float64), e_t.astype(np.float64)):
        d = np.array([e[i] - e[j] for i, j in pairs])
        scaled.append(d / np.mean([np.linalg.norm(row) for row in d]))
    lengths = [np.linalg.norm(d, axis=1) for d in scaled]
    return float(
        np.mean(smooth_l1(scaled[0] - scaled[1]).sum(axis=1)) + ratio * np.mean(smooth_l1(lengths[0] - lengths[1]))
    )


def cross_entropy(p: Array, m: Array, use_sigmoid: bool) -> Array:
    """Of one sample, per voxel."""
    p = p.astype(np.float64)
    if use_sigmoid:
        return -np.mean([y * np.log(q) + (1 - y) * np.log(1 - q) for q, y in zip(p, m[1:], strict=True)], axis=0)
    return -sum(y * np.log(q) for q, y in zip(p, m, strict=True))


def voxel_weights(rule: str, ps: list[Array], m: Array, base: list[float], tau: float, use_sigmoid: bool) -> Array:
    """``(M, B, *S)``."""
    base = np.array(base, dtype=np.float64) / sum(base)
    out = np.zeros((len(ps), len(m), *m.shape[2:]))
    for b, v in itertools.product(range(len(m)), np.ndindex(*m.shape[2:])):
        mine = [k for k in range(m.shape[1]) if m[(b, k, *v)] > 0]
        if not mine or rule == "mean":
            w = base
        elif rule == "confidence":
            w = base * np.exp([-cross_entropy(p[b], m[b], use_sigmoid)[v] / tau for p in ps])
        else:
            w = np.mean([base_times_dice(ps, m, base, b, k, use_sigmoid) for k in mine], axis=0)
        out[(slice(None), b, *v)] = w / w.sum()
    return out


def base_times_dice(ps: list[Array], m: Array, base: Array, b: int, k: int, use_sigmoid: bool) -> Array:
    labelled = m[b].sum(axis=0) > 0
    dice = []
    for p in ps:
        q = p[b].astype(np.float64)
        if use_sigmoid:
            q = np.concatenate((1 - q.max(axis=0, keepdims=True), q))
        dice.append(2 * (q[k] * m[b, k])[labelled].sum() / (q[k] + m[b, k])[labelled].sum())
    weights = base * np.array(dice)
    return weights / weights.sum()
