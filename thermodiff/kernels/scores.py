"""Scores and log-densities of x_t = alpha x_0 + sigma z for mixtures and point clouds, on blocks of LANES points.

Every field has the signature of `jit.field_signature`.  The row of scalars is ``(alpha, sigma**2, a, c)``:

* a *score field* writes ``a x + c s(x)`` with s = grad log p_t into the first d rows of ``out``; the score itself is
  (a, c) = (0, 1).  If ``out`` has more rows it adds the exact divergence ``a d + c div s`` (row d), log p_t (row d + 1),
  and, for mixtures and as far as there are rows, r_k - w_k and r_k (y' C_k^-1 y - d) for each component, y = x - alpha m_k:
  quantities whose mean is zero;
* a *density field* writes log p_t(x) into row 0 and the entropy of the responsibilities H(r(x)) (nats) into row 1.

The law travels in one flat vector ``params``; its layout is made by the ``pack_`` functions at the end, so that one
compiled integrator serves every law.  Constants of a component are formed once per block.
"""

from __future__ import annotations

import numpy as np

from thermodiff.kernels.elementary import exp_weight, log
from thermodiff.kernels.jit import LANES, field_signature, inline, kernel

TILE = 32
"""Points of a cloud that are taken in one sweep over the lanes."""


@inline
def isotropic_parts(params):
    """(log weights, cumulative weights, variances, means) of an isotropic mixture."""
    count, dim = int(params[0]), int(params[1])
    start = 2
    logw = params[start : start + count]
    cumulative = params[start + count : start + 2 * count]
    variances = params[start + 2 * count : start + 3 * count]
    means = params[start + 3 * count : start + 3 * count + count * dim].reshape(count, dim)
    return logw, cumulative, variances, means


@inline
def full_parts(params):
    """(log weights, cumulative weights, means, eigenvalues, eigenvectors as rows) of a mixture with full covariances."""
    count, dim = int(params[0]), int(params[1])
    start = 2
    logw = params[start : start + count]
    cumulative = params[start + count : start + 2 * count]
    start += 2 * count
    means = params[start : start + count * dim].reshape(count, dim)
    start += count * dim
    eigenvalues = params[start : start + count * dim].reshape(count, dim)
    start += count * dim
    axes = params[start : start + count * dim * dim].reshape(count, dim, dim)
    return logw, cumulative, means, eigenvalues, axes


@inline
def cloud_parts(params):
    """Points of a cloud, (n, d)."""
    count, dim = int(params[0]), int(params[1])
    return params[2 : 2 + count * dim].reshape(count, dim)


@inline
def _isotropic_logits(x, alpha, variance, logw, mean, out, top):
    """log(w_k N(x; alpha m_k, variance)) + d/2 log 2 pi into ``out``; ``top`` keeps the running maximum."""
    dim = x.shape[0]
    half = -0.5 / variance
    constant = logw - 0.5 * dim * np.log(variance)
    for lane in range(LANES):
        out[lane] = 0.0
    for c in range(dim):
        row, centre = x[c], alpha * mean[c]
        for lane in range(LANES):
            gap = row[lane] - centre
            out[lane] += gap * gap
    for lane in range(LANES):
        value = constant + half * out[lane]
        out[lane] = value
        top[lane] = value if value > top[lane] else top[lane]
    return constant


@inline
def _project(x, alpha, mean, axis, out):
    """Coordinate of x - alpha m along one principal axis."""
    for lane in range(LANES):
        out[lane] = 0.0
    for c in range(x.shape[0]):
        row, centre, weight = x[c], alpha * mean[c], axis[c]
        for lane in range(LANES):
            out[lane] += weight * (row[lane] - centre)


@inline
def _full_logits(x, alpha, sigma2, logw, mean, eigenvalues, axes, out, top, work):
    """As `_isotropic_logits`, for the covariance alpha^2 C_k + sigma^2 in its principal axes."""
    dim = x.shape[0]
    constant = logw
    for lane in range(LANES):
        out[lane] = 0.0
    for j in range(dim):
        variance = alpha * alpha * eigenvalues[j] + sigma2
        constant -= 0.5 * np.log(variance)
        _project(x, alpha, mean, axes[j], work)
        half = -0.5 / variance
        for lane in range(LANES):
            out[lane] += half * work[lane] * work[lane]
    for lane in range(LANES):
        value = constant + out[lane]
        out[lane] = value
        top[lane] = value if value > top[lane] else top[lane]
    return constant


@inline
def _soften(logits, top, total):
    """exp(logit - top) in place; returns with the sums in ``total``."""
    for lane in range(LANES):
        total[lane] = 0.0
    for k in range(logits.shape[0]):
        row = logits[k]
        for lane in range(LANES):
            value = exp_weight(row[lane] - top[lane])
            row[lane] = value
            total[lane] += value


@inline
def _squares(logits, constants, dim, unit):
    """y' C_k^-1 y - d of each component, which is in the logits until the exponentials overwrite them."""
    for k in range(logits.shape[0]):
        source, target = logits[k], unit[k]
        for lane in range(LANES):
            target[lane] = 2.0 * (constants[k] - source[lane]) - dim


@inline
def _normalise(weights, total):
    """Exponentials to responsibilities."""
    for lane in range(LANES):
        total[lane] = 1.0 / total[lane]
    for k in range(weights.shape[0]):
        row = weights[k]
        for lane in range(LANES):
            row[lane] *= total[lane]


@inline
def _component_rows(responsibilities, unit, logw, dim, out):
    """r_k - w_k and r_k (y' C_k^-1 y - d), two rows for each component."""
    for k in range(responsibilities.shape[0]):
        r, u, first, second = responsibilities[k], unit[k], out[dim + 2 + 2 * k], out[dim + 3 + 2 * k]
        weight = np.exp(logw[k])
        for lane in range(LANES):
            first[lane] = r[lane] - weight
            second[lane] = r[lane] * u[lane]


@inline
def _log_density(top, total, dim, out):
    """log p_t from the running maximum and the sum of exponentials."""
    constant = 0.5 * dim * np.log(2.0 * np.pi)
    for lane in range(LANES):
        out[lane] = top[lane] + log(total[lane]) - constant


@inline
def _finish(x, a, c, excess, extra, out):
    """Last step of every score field: a x + c s, after its divergence from s and the mean of |g_k|^2 - tr C_k^-1."""
    dim = x.shape[0]
    if extra > 0:
        last = out[dim]
        for lane in range(LANES):
            last[lane] = excess[lane]
        for i in range(dim):
            row = out[i]
            for lane in range(LANES):
                last[lane] -= row[lane] * row[lane]
        for lane in range(LANES):
            last[lane] = a * dim + c * last[lane]
    for i in range(dim):
        source, target = x[i], out[i]
        for lane in range(LANES):
            target[lane] = a * source[lane] + c * target[lane]


@kernel(field_signature)
def isotropic_score(x, row, params, out):
    """a x + c s for a mixture of isotropic Gaussians; cost K d per point."""
    alpha, sigma2, a, c = row[0], row[1], row[2], row[3]
    logw, _, variances, means = isotropic_parts(params)
    count, dim = means.shape
    extra = out.shape[0] - dim
    logits, constants = np.empty((count, LANES)), np.empty(count)
    top, total, excess = np.full(LANES, -np.inf), np.empty(LANES), np.zeros(LANES)
    for k in range(count):
        v = alpha * alpha * variances[k] + sigma2
        constants[k] = _isotropic_logits(x, alpha, v, logw[k], means[k], logits[k], top)
    unit = np.empty((count if extra > 0 else 0, LANES))
    if extra > 0:
        _squares(logits, constants, dim, unit)
    _soften(logits, top, total)
    if extra > 1:
        _log_density(top, total, dim, out[dim + 1])
    _normalise(logits, total)
    if extra > 2:
        _component_rows(logits, unit, logw, dim, out)
    for i in range(dim):
        target = out[i]
        for lane in range(LANES):
            target[lane] = 0.0
    for k in range(count):
        inverse = 1.0 / (alpha * alpha * variances[k] + sigma2)
        weight = logits[k]
        for lane in range(LANES):
            weight[lane] *= inverse
        for i in range(dim):
            source, target, centre = x[i], out[i], alpha * means[k, i]
            for lane in range(LANES):
                target[lane] += weight[lane] * (centre - source[lane])
        if extra > 0:
            u = unit[k]
            for lane in range(LANES):
                excess[lane] += weight[lane] * u[lane]
    # excess: |g_k|^2 - d / v_k = (y' C_k^-1 y - d) / v_k, and the factor 1 / v_k is in the weights.
    _finish(x, a, c, excess, extra, out)


@kernel(field_signature)
def isotropic_density(x, row, params, out):
    """log p_t and H(r) for a mixture of isotropic Gaussians."""
    alpha, sigma2 = row[0], row[1]
    logw, _, variances, means = isotropic_parts(params)
    count, dim = means.shape
    logits = np.empty((count, LANES))
    top = np.full(LANES, -np.inf)
    for k in range(count):
        v = alpha * alpha * variances[k] + sigma2
        _isotropic_logits(x, alpha, v, logw[k], means[k], logits[k], top)
    _log_sum(logits, top, dim, out)


@inline
def _log_sum(logits, top, dim, out):
    """Row 0: log sum exp of the logits - d/2 log 2 pi; row 1: the entropy of their softmax."""
    total, moment = np.zeros(LANES), np.zeros(LANES)
    for k in range(logits.shape[0]):
        row = logits[k]
        for lane in range(LANES):
            gap = row[lane] - top[lane]
            value = exp_weight(gap)
            total[lane] += value
            moment[lane] += value * (gap if gap > -800.0 else 0.0)
    density, entropy = out[0], out[1]
    constant = 0.5 * dim * np.log(2.0 * np.pi)
    for lane in range(LANES):
        log_total = log(total[lane])
        density[lane] = top[lane] + log_total - constant
        entropy[lane] = log_total - moment[lane] / total[lane]


@kernel(field_signature)
def full_score(x, row, params, out):
    """a x + c s for a mixture with full covariances; cost K d^2 per point."""
    alpha, sigma2, a, c = row[0], row[1], row[2], row[3]
    logw, _, means, eigenvalues, axes = full_parts(params)
    count, dim = means.shape
    extra = out.shape[0] - dim
    logits, constants = np.empty((count, LANES)), np.empty(count)
    top, total, work, excess = np.full(LANES, -np.inf), np.empty(LANES), np.empty(LANES), np.zeros(LANES)
    for k in range(count):
        constants[k] = _full_logits(x, alpha, sigma2, logw[k], means[k], eigenvalues[k], axes[k], logits[k], top, work)
    unit = np.empty((count if extra > 0 else 0, LANES))
    if extra > 0:
        _squares(logits, constants, dim, unit)
    _soften(logits, top, total)
    if extra > 1:
        _log_density(top, total, dim, out[dim + 1])
    _normalise(logits, total)
    if extra > 2:
        _component_rows(logits, unit, logw, dim, out)
    for i in range(dim):
        target = out[i]
        for lane in range(LANES):
            target[lane] = 0.0
    for k in range(count):
        weight = logits[k]
        for j in range(dim):
            inverse = 1.0 / (alpha * alpha * eigenvalues[k, j] + sigma2)
            _project(x, alpha, means[k], axes[k, j], work)
            if extra > 0:
                for lane in range(LANES):
                    excess[lane] += weight[lane] * inverse * (inverse * work[lane] * work[lane] - 1.0)
            for lane in range(LANES):
                work[lane] *= weight[lane] * inverse
            for i in range(dim):
                target, component = out[i], axes[k, j, i]
                for lane in range(LANES):
                    target[lane] -= component * work[lane]
    _finish(x, a, c, excess, extra, out)


@kernel(field_signature)
def full_density(x, row, params, out):
    """log p_t and H(r) for a mixture with full covariances."""
    alpha, sigma2 = row[0], row[1]
    logw, _, means, eigenvalues, axes = full_parts(params)
    count, dim = means.shape
    logits = np.empty((count, LANES))
    top, work = np.full(LANES, -np.inf), np.empty(LANES)
    for k in range(count):
        _full_logits(x, alpha, sigma2, logw[k], means[k], eigenvalues[k], axes[k], logits[k], top, work)
    _log_sum(logits, top, dim, out)


@inline
def _cloud_distances(x, alpha, points, first, last, out):
    """|x - alpha p|^2 for the points first ... last - 1 into the rows of ``out``, four points a sweep."""
    for j in range(last - first):
        row = out[j]
        for lane in range(LANES):
            row[lane] = 0.0
    j = first
    while j + 4 <= last:
        o0, o1, o2, o3 = out[j - first], out[j - first + 1], out[j - first + 2], out[j - first + 3]
        for i in range(x.shape[0]):
            row = x[i]
            p0, p1 = alpha * points[j, i], alpha * points[j + 1, i]
            p2, p3 = alpha * points[j + 2, i], alpha * points[j + 3, i]
            for lane in range(LANES):
                value = row[lane]
                g0, g1, g2, g3 = value - p0, value - p1, value - p2, value - p3
                o0[lane] += g0 * g0
                o1[lane] += g1 * g1
                o2[lane] += g2 * g2
                o3[lane] += g3 * g3
        j += 4
    while j < last:
        o0 = out[j - first]
        for i in range(x.shape[0]):
            row, p0 = x[i], alpha * points[j, i]
            for lane in range(LANES):
                g0 = row[lane] - p0
                o0[lane] += g0 * g0
        j += 1


@inline
def _cloud_weights(distances, size, half, top, total, scale):
    """Fold a tile into the running softmax: weights in place of distances, ``scale`` rescales what came before."""
    for lane in range(LANES):
        scale[lane] = top[lane]
    for j in range(size):
        row = distances[j]
        for lane in range(LANES):
            value = half * row[lane]
            top[lane] = value if value > top[lane] else top[lane]
    for lane in range(LANES):
        scale[lane] = exp_weight(scale[lane] - top[lane])
        total[lane] *= scale[lane]
    for j in range(size):
        row = distances[j]
        for lane in range(LANES):
            value = exp_weight(half * row[lane] - top[lane])
            row[lane] = value
            total[lane] += value


@kernel(field_signature)
def cloud_score(x, row, params, out):
    """a x + c s for n equal points (the empirical law); cost n d per point, memory of one tile."""
    alpha, sigma2, a, c = row[0], row[1], row[2], row[3]
    points = cloud_parts(params)
    count, dim = points.shape
    extra = out.shape[0] - dim
    half = -0.5 / sigma2
    weights, kept = np.empty((TILE, LANES)), np.empty((TILE if extra > 0 else 0, LANES))
    top, total = np.full(LANES, -np.inf), np.zeros(LANES)
    scale, excess = np.empty(LANES), np.zeros(LANES)
    for i in range(dim):
        target = out[i]
        for lane in range(LANES):
            target[lane] = 0.0
    first = 0
    while first < count:
        last = min(first + TILE, count)
        size = last - first
        _cloud_distances(x, alpha, points, first, last, weights)
        if extra > 0:
            kept[:size] = weights[:size]
        _cloud_weights(weights, size, half, top, total, scale)
        if extra > 0:
            for lane in range(LANES):
                excess[lane] *= scale[lane]
            for j in range(size):
                weight, distance = weights[j], kept[j]
                for lane in range(LANES):
                    excess[lane] += weight[lane] * distance[lane]
        for i in range(dim):
            target = out[i]
            for lane in range(LANES):
                target[lane] *= scale[lane]
            j = 0
            while j + 4 <= size:
                w0, w1, w2, w3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
                p0, p1 = points[first + j, i], points[first + j + 1, i]
                p2, p3 = points[first + j + 2, i], points[first + j + 3, i]
                for lane in range(LANES):
                    target[lane] += (w0[lane] * p0 + w1[lane] * p1) + (w2[lane] * p2 + w3[lane] * p3)
                j += 4
            while j < size:
                w0, p0 = weights[j], points[first + j, i]
                for lane in range(LANES):
                    target[lane] += w0[lane] * p0
                j += 1
        first = last
    if extra > 1:
        _log_density(top, total, dim, out[dim + 1])
        shift = np.log(count) + 0.5 * dim * np.log(sigma2)
        target = out[dim + 1]
        for lane in range(LANES):
            target[lane] -= shift
    for lane in range(LANES):
        scale[lane] = 1.0 / total[lane]
        excess[lane] = (excess[lane] * scale[lane] / sigma2 - dim) / sigma2
    for i in range(dim):
        source, target = x[i], out[i]
        for lane in range(LANES):
            target[lane] = (alpha * target[lane] * scale[lane] - source[lane]) / sigma2
    _finish(x, a, c, excess, extra, out)


@kernel(field_signature)
def cloud_density(x, row, params, out):
    """log p_t and H(r) for n equal points."""
    alpha, sigma2 = row[0], row[1]
    points = cloud_parts(params)
    count, dim = points.shape
    half = -0.5 / sigma2
    weights, kept = np.empty((TILE, LANES)), np.empty((TILE, LANES))
    top, total = np.full(LANES, -np.inf), np.zeros(LANES)
    scale, moment = np.empty(LANES), np.zeros(LANES)
    first = 0
    while first < count:
        last = min(first + TILE, count)
        size = last - first
        _cloud_distances(x, alpha, points, first, last, weights)
        kept[:size] = weights[:size]
        _cloud_weights(weights, size, half, top, total, scale)
        for lane in range(LANES):
            moment[lane] *= scale[lane]
        for j in range(size):
            weight, distance = weights[j], kept[j]
            for lane in range(LANES):
                moment[lane] += weight[lane] * half * distance[lane]
        first = last
    density, entropy = out[0], out[1]
    constant = np.log(count) + 0.5 * dim * (np.log(2.0 * np.pi) + np.log(sigma2))
    for lane in range(LANES):
        log_total = log(total[lane])
        density[lane] = top[lane] + log_total - constant
        entropy[lane] = log_total + top[lane] - moment[lane] / total[lane]


def pack_isotropic(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Flat parameters of `isotropic_score`: weights (K,), means (K, d), variances (K,)."""
    return np.concatenate([means.shape, np.log(weights), _cumulative(weights), variances, means.ravel()])


def pack_full(weights: np.ndarray, means: np.ndarray, eigenvalues: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Flat parameters of `full_score`: eigenvalues (K, d) and ``axes`` (K, d, d), whose rows are the eigenvectors."""
    parts = [means.shape, np.log(weights), _cumulative(weights), means.ravel(), eigenvalues.ravel(), axes.ravel()]
    return np.concatenate(parts)


def pack_cloud(points: np.ndarray) -> np.ndarray:
    """Flat parameters of `cloud_score`: points (n, d)."""
    return np.concatenate([points.shape, points.ravel()])


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """Upper edges of the components in (0, 1); the last is 1 exactly, so that every uniform finds one."""
    edges = np.cumsum(weights) / np.sum(weights)
    edges[-1] = 1.0
    return edges
