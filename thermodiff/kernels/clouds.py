"""Score and log-density of x_t = alpha x_0 + sigma z for a point cloud, x_0 one of n points with equal chance.

The fields write what those of `thermodiff.kernels.scores` write.  Points are taken in tiles with a running softmax, so the
memory is that of one tile, whatever n is.
"""

from __future__ import annotations

import numpy as np

from thermodiff.kernels.elementary import exp_weight, log
from thermodiff.kernels.jit import LANES, field_signature, inline, kernel
from thermodiff.kernels.scores import finish, log_density

TILE = 32
"""Points of a cloud that are taken in one sweep over the lanes."""


@inline
def cloud_parts(params):
    """Points of a cloud, (n, d)."""
    count, dim = int(params[0]), int(params[1])
    return params[2 : 2 + count * dim].reshape(count, dim)


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
        log_density(top, total, dim, out[dim + 1])
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
    finish(x, a, c, excess, extra, out)


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


def pack_cloud(points: np.ndarray) -> np.ndarray:
    """Flat parameters of `cloud_score`: points (n, d)."""
    return np.concatenate([points.shape, points.ravel()])
