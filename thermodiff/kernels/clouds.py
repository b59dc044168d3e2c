"""Score and log-density of x_t = alpha x_0 + sigma z for a point cloud, x_0 one of n points with equal chance.

The fields write what those of `thermodiff.kernels.scores` write.  Points are taken in tiles with a running softmax, so the
memory is that of one tile, whatever n is.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.elementary import LN2, LOG2E, exp2_weight, log
from thermodiff.kernels.jit import LANES, field_signature, inline, kernel, lanes, matrix, subroutine, vector
from thermodiff.kernels.scores import finish, log_density

TILE = 64
"""Points of a cloud whose weights are held at a time: few enough for the second cache."""

NEGLIGIBLE = 1e-25
"""Weight beside the largest, below which even millions of points do not change a float64."""

# Four points on two coordinates is what registers hold: as many multiply-adds as loads and stores.  Rows of arrays that are
# written lie LANES apart in one flat array, so that LLVM need not check that they do not overlap.


@inline
def cloud_parts(params):
    """Number of points, dimension, and the points of a cloud, (n, d)."""
    # In a tuple: Numba takes no array alone from a helper that counts no references.
    count, dim = int(params[0]), int(params[1])
    return count, dim, params[2 : 2 + count * dim].reshape(count, dim)


@inline
def _four_distances(x, alpha, points, out):
    """Add |x - alpha p|^2 for four points to four rows of ``out``."""
    dim = x.shape[0]
    for i in range(0, dim - 1, 2):
        one, two = x[i], x[i + 1]
        p0, q0, p1, q1 = alpha * points[0, i], alpha * points[0, i + 1], alpha * points[1, i], alpha * points[1, i + 1]
        p2, q2, p3, q3 = alpha * points[2, i], alpha * points[2, i + 1], alpha * points[3, i], alpha * points[3, i + 1]
        for lane in range(LANES):
            u, v = one[lane], two[lane]
            out[lane] += (u - p0) * (u - p0) + (v - q0) * (v - q0)
            out[LANES + lane] += (u - p1) * (u - p1) + (v - q1) * (v - q1)
            out[2 * LANES + lane] += (u - p2) * (u - p2) + (v - q2) * (v - q2)
            out[3 * LANES + lane] += (u - p3) * (u - p3) + (v - q3) * (v - q3)
    if dim % 2 == 1:
        one = x[dim - 1]
        for j in range(4):
            p0 = alpha * points[j, dim - 1]
            for lane in range(LANES):
                out[j * LANES + lane] += (one[lane] - p0) * (one[lane] - p0)


@inline
def _cloud_distances(x, alpha, points, first, last, out):
    """|x - alpha p|^2 for the points first ... last - 1 into the rows of ``out`` (flat)."""
    for place in range((last - first) * LANES):
        out[place] = 0.0
    whole = last - (last - first) % 4
    for j in range(first, whole, 4):
        _four_distances(x, alpha, points[j : j + 4], out[(j - first) * LANES : (j - first + 4) * LANES])
    for j in range(whole, last):
        row = out[(j - first) * LANES : (j - first + 1) * LANES]
        for i in range(x.shape[0]):
            source, p0 = x[i], alpha * points[j, i]
            for lane in range(LANES):
                row[lane] += (source[lane] - p0) * (source[lane] - p0)


@inline
def _cloud_weights(distances, size, half, top, total, scale):
    """Fold a tile into the running softmax: weights in place of distances, ``scale`` rescales what came before."""
    for lane in range(LANES):
        scale[lane] = top[lane]
    for j in range(size):
        row = distances[j * LANES : (j + 1) * LANES]
        for lane in range(LANES):
            value = half * row[lane]
            top[lane] = value if value > top[lane] else top[lane]
    for lane in range(LANES):
        scale[lane] = exp2_weight(scale[lane] - top[lane])
        total[lane] *= scale[lane]
    for j in range(size):
        row = distances[j * LANES : (j + 1) * LANES]
        for lane in range(LANES):
            value = exp2_weight(half * row[lane] - top[lane])
            row[lane] = value
            total[lane] += value


@inline
def _add_four(weights, points, sums):
    """Add four points times their weights to ``sums``, one row of LANES for each coordinate."""
    dim = points.shape[1]
    for i in range(0, dim - 1, 2):
        out = sums[i * LANES : (i + 2) * LANES]
        p0, p1, p2, p3 = points[0, i], points[1, i], points[2, i], points[3, i]
        q0, q1, q2, q3 = points[0, i + 1], points[1, i + 1], points[2, i + 1], points[3, i + 1]
        for lane in range(LANES):
            w0, w1 = weights[lane], weights[LANES + lane]
            w2, w3 = weights[2 * LANES + lane], weights[3 * LANES + lane]
            out[lane] += (w0 * p0 + w1 * p1) + (w2 * p2 + w3 * p3)
            out[LANES + lane] += (w0 * q0 + w1 * q1) + (w2 * q2 + w3 * q3)
    if dim % 2 == 1:
        _add_one(weights[:LANES], points[0, dim - 1 :], sums[(dim - 1) * LANES :])
        _add_one(weights[LANES : 2 * LANES], points[1, dim - 1 :], sums[(dim - 1) * LANES :])
        _add_one(weights[2 * LANES : 3 * LANES], points[2, dim - 1 :], sums[(dim - 1) * LANES :])
        _add_one(weights[3 * LANES :], points[3, dim - 1 :], sums[(dim - 1) * LANES :])


@inline
def _add_one(weight, point, sums):
    """Add one point times its weight."""
    for i in range(point.size):
        out, p0 = sums[i * LANES : (i + 1) * LANES], point[i]
        for lane in range(LANES):
            out[lane] += weight[lane] * p0


@inline
def _seen(weights):
    """Whether any weight counts."""
    count = 0
    for place in range(4 * LANES):
        count += 1 if weights[place] > NEGLIGIBLE else 0
    return count > 0


@inline
def _add_points(weights, points, scale, sums):
    """``sums = scale sums + weights points`` for the points of a tile."""
    size, dim = points.shape
    for i in range(dim):
        out = sums[i * LANES : (i + 1) * LANES]
        for lane in range(LANES):
            out[lane] *= scale[lane]
    whole = size - size % 4
    for j in range(0, whole, 4):
        if _seen(weights[j * LANES : (j + 4) * LANES]):
            _add_four(weights[j * LANES : (j + 4) * LANES], points[j : j + 4], sums)
    for j in range(whole, size):
        _add_one(weights[j * LANES : (j + 1) * LANES], points[j], sums)


@inline
def _add_moments(weights, distances, size, factor, scale, sums):
    """``sums = scale sums + weights factor distances`` over the points of a tile."""
    for lane in range(LANES):
        sums[lane] *= scale[lane]
    for j in range(size):
        weight, distance = weights[j * LANES : (j + 1) * LANES], distances[j * LANES : (j + 1) * LANES]
        for lane in range(LANES):
            sums[lane] += weight[lane] * (factor * distance[lane])


@kernel(field_signature)
def cloud_score(x, row, params, out):
    """a x + c s for n equal points (the empirical law); cost n d per point, memory of one tile."""
    dim = int(params[1])
    weights, kept = np.empty(TILE * LANES), np.empty(TILE * LANES if out.shape[0] > dim else 0)
    _cloud_score(x, row, params, out, weights, kept, lanes(4), np.zeros(dim * LANES))


@subroutine
def _cloud_score(x, row, params, out, weights, kept, work, sums):
    """`cloud_score`; ``kept`` holds the distances of a tile for what is written beyond the score, ``sums`` zeros."""
    alpha, sigma2, a, c = row[0], row[1], row[2], row[3]
    count, dim, points = cloud_parts(params)
    extra = out.shape[0] - dim
    half = -0.5 * LOG2E / sigma2
    top, total, scale, excess = work[0], work[1], work[2], work[3]
    for lane in range(LANES):
        top[lane], total[lane], excess[lane] = -np.inf, 0.0, 0.0
    for first in range(0, count, TILE):
        last = min(first + TILE, count)
        size = last - first
        _cloud_distances(x, alpha, points, first, last, weights)
        if extra > 0:
            _keep(weights, size, kept)
        _cloud_weights(weights, size, half, top, total, scale)
        if extra > 0:
            _add_moments(weights, kept, size, 1.0, scale, excess)
        _add_points(weights, points[first:last], scale, sums)
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
        source, mean, target = x[i], sums[i * LANES : (i + 1) * LANES], out[i]
        for lane in range(LANES):
            target[lane] = (alpha * mean[lane] * scale[lane] - source[lane]) / sigma2
    finish(x, a, c, excess, extra, out)


@kernel(field_signature)
def cloud_density(x, row, params, out):
    """log p_t and H(r) for n equal points."""
    _cloud_density(x, row, params, out, np.empty(TILE * LANES), np.empty(TILE * LANES), lanes(4))


@inline
def _keep(distances, size, out):
    """A copy of the distances of a tile."""
    for place in range(size * LANES):
        out[place] = distances[place]


@subroutine
def _cloud_density(x, row, params, out, weights, kept, work):
    """`cloud_density`."""
    alpha, sigma2 = row[0], row[1]
    count, dim, points = cloud_parts(params)
    half = -0.5 * LOG2E / sigma2
    top, total, scale, moment = work[0], work[1], work[2], work[3]
    for lane in range(LANES):
        top[lane], total[lane], moment[lane] = -np.inf, 0.0, 0.0
    for first in range(0, count, TILE):
        last = min(first + TILE, count)
        size = last - first
        _cloud_distances(x, alpha, points, first, last, weights)
        _keep(weights, size, kept)
        _cloud_weights(weights, size, half, top, total, scale)
        _add_moments(weights, kept, size, half, scale, moment)
    density, entropy = out[0], out[1]
    constant = np.log(count) + 0.5 * dim * (np.log(2.0 * np.pi) + np.log(sigma2))
    for lane in range(LANES):
        log_total = log(total[lane])
        density[lane] = LN2 * top[lane] + log_total - constant
        entropy[lane] = log_total + LN2 * (top[lane] - moment[lane] / total[lane])


@kernel(types.void(matrix, vector, types.float64, vector))
def soften(products, shifts, scale, totals):
    """exp(scale (product - shift) - largest of the row) in place, and the sums of the rows."""
    count = products.shape[1]
    top = lanes(1).reshape(-1)
    for q in range(products.shape[0]):
        row = products[q]
        top[:] = -np.inf
        for first in range(0, count, LANES):
            size = min(LANES, count - first)
            part, shift = row[first : first + size], shifts[first : first + size]
            for lane in range(size):
                value = LOG2E * scale * (part[lane] - shift[lane])
                part[lane] = value
                top[lane] = value if value > top[lane] else top[lane]
        largest = top.max()
        top[:] = 0.0
        for first in range(0, count, LANES):
            size = min(LANES, count - first)
            part = row[first : first + size]
            for lane in range(size):
                value = exp2_weight(part[lane] - largest)
                part[lane] = value
                top[lane] += value
        totals[q] = top.sum()


def pack_cloud(points: np.ndarray) -> np.ndarray:
    """Flat parameters of `cloud_score`: points (n, d)."""
    return np.concatenate([points.shape, points.ravel()])
