"""Draws of x_t and the per-sample inner products from which every row of the ledger is made.

At a node with scalars (alpha, sigma) the kernel draws x = alpha x_0 + sigma z, evaluates b = sigma grad log p_t(x), and
keeps inner products of x, b and c.  Here c = sigma grad log p_t(x | k) is the score of the one component k that x was
drawn from; E[c | x] = b, which makes c the source of control variates.  For a point cloud c = -z.  All rates are linear in
these numbers.  Draw, score and products are fused: a sample costs no other memory.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.jit import LANES, field_pointer, inline, kernel, matrix, vector, words
from thermodiff.kernels.philox import COMPONENT, NOISE, fill_rows, fill_uniforms
from thermodiff.kernels.scores import cloud_parts, full_parts, isotropic_parts

GRAM = ("xx", "xc", "cc", "xb", "bb", "cb")
"""Inner products in the Gram kernel's output; "div" (sigma div b), "logp" and the component rows follow."""

draw_signature = types.void(words, types.int64, types.int64, types.float64, types.float64, vector, matrix, matrix)
"""``draw(key, path, node, alpha, sigma, params, x[d, LANES], c[d, LANES])`` for LANES paths from ``path`` on."""

draw_pointer = types.FunctionType(draw_signature)


@inline
def _choose(key, path, node, cumulative, quad, chosen):
    """The component of each lane, by inversion of the cumulative weights."""
    fill_uniforms(key, path, node // 4, COMPONENT, quad)
    uniforms = quad[node % 4]
    for lane in range(LANES):
        chosen[lane] = 0
    for k in range(cumulative.size - 1):
        edge = cumulative[k]
        for lane in range(LANES):
            chosen[lane] += 1 if uniforms[lane] >= edge else 0


@kernel(draw_signature)
def draw_isotropic(key, path, node, alpha, sigma, params, x, c):
    """x_t and component score for a mixture of isotropic Gaussians."""
    _, cumulative, variances, means = isotropic_parts(params)
    quad, chosen = np.empty((4, LANES)), np.empty(LANES, np.int64)
    fill_rows(key, path, node, NOISE, quad, -1, c)
    _choose(key, path, node, cumulative, quad, chosen)
    # Within a component x_t is Gaussian: one normal per coordinate stands for x_0 and z together.
    widths = np.sqrt(alpha * alpha * variances + sigma * sigma)
    slopes = -sigma / widths
    for i in range(means.shape[1]):
        xi, ci = x[i], c[i]
        for lane in range(LANES):
            k = chosen[lane]
            normal = ci[lane]
            xi[lane] = alpha * means[k, i] + widths[k] * normal
            ci[lane] = slopes[k] * normal


@kernel(draw_signature)
def draw_full(key, path, node, alpha, sigma, params, x, c):
    """x_t and component score for a mixture with full covariances."""
    _, cumulative, means, eigenvalues, axes = full_parts(params)
    dim = means.shape[1]
    quad, chosen = np.empty((4, LANES)), np.empty(LANES, np.int64)
    normals = np.empty((dim, LANES))
    fill_rows(key, path, node, NOISE, quad, -1, normals)
    _choose(key, path, node, cumulative, quad, chosen)
    widths = np.sqrt(alpha * alpha * eigenvalues + sigma * sigma)
    for lane in range(LANES):
        k = chosen[lane]
        for i in range(dim):
            x[i, lane] = alpha * means[k, i]
            c[i, lane] = 0.0
        # In the principal axes of the component.
        for j in range(dim):
            offset = widths[k, j] * normals[j, lane]
            slope = -sigma / widths[k, j] * normals[j, lane]
            for i in range(dim):
                x[i, lane] += axes[k, j, i] * offset
                c[i, lane] += axes[k, j, i] * slope


@kernel(draw_signature)
def draw_cloud(key, path, node, alpha, sigma, params, x, c):
    """x_t for a point drawn uniformly from a cloud, and c = -z."""
    points = cloud_parts(params)
    count, dim = points.shape
    quad = np.empty((4, LANES))
    fill_rows(key, path, node, NOISE, quad, -1, c)
    fill_uniforms(key, path, node // 4, COMPONENT, quad)
    uniforms = quad[node % 4]
    for lane in range(LANES):
        k = min(int(uniforms[lane] * count), count - 1)
        for i in range(dim):
            x[i, lane] = alpha * points[k, i] + sigma * c[i, lane]
            c[i, lane] = -c[i, lane]


@kernel(types.void(draw_pointer, words, types.int64, types.int64, types.int64, vector, vector, matrix, matrix))
def draws(draw, key, first, last, node, scalars, params, x, c):
    """x_t and c of blocks first ... last - 1 as columns of ``x[d, n]`` and ``c[d, n]``; scalars = (alpha, sigma)."""
    dim = x.shape[0]
    block_x, block_c = np.empty((dim, LANES)), np.empty((dim, LANES))
    for block in range(first, last):
        draw(key, block * LANES, node, scalars[0], scalars[1], params, block_x, block_c)
        offset = (block - first) * LANES
        x[:, offset : offset + LANES] = block_x
        c[:, offset : offset + LANES] = block_c


@kernel(
    types.void(
        draw_pointer,
        field_pointer,
        words,
        types.int64,
        types.int64,
        types.int64,
        types.float64,
        types.float64,
        vector,
        matrix,
    )
)
def gram(draw, field, key, first, last, node, alpha, sigma, params, out):
    """Inner products and extra rows of blocks first ... last - 1 at one node; ``out[row, n]``.

    The rows of `GRAM` come first, then those that the score field writes beyond the score.
    """
    dim, extra = int(params[1]), out.shape[0] - 6
    x, c, b = np.empty((dim, LANES)), np.empty((dim, LANES)), np.empty((dim + extra, LANES))
    # The field writes a x + c s: with c = sigma that is b.
    row = np.array([alpha, sigma * sigma, 0.0, sigma])
    for block in range(first, last):
        draw(key, block * LANES, node, alpha, sigma, params, x, c)
        field(x, row, params, b)
        offset = (block - first) * LANES
        _products(x, c, b, out[:, offset : offset + LANES])
        divergence = out[6, offset : offset + LANES]
        for lane in range(LANES):
            divergence[lane] = sigma * b[dim, lane]
        for r in range(1, extra):
            source, target = b[dim + r], out[6 + r, offset : offset + LANES]
            for lane in range(LANES):
                target[lane] = source[lane]


@inline
def _products(x, c, b, sums):
    """The six inner products of each lane."""
    xx, xc, cc, xb, bb, cb = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    for r in range(6):
        row = sums[r]
        for lane in range(LANES):
            row[lane] = 0.0
    for i in range(x.shape[0]):
        xi, ci, bi = x[i], c[i], b[i]
        for lane in range(LANES):
            xx[lane] += xi[lane] * xi[lane]
            xc[lane] += xi[lane] * ci[lane]
            cc[lane] += ci[lane] * ci[lane]
        for lane in range(LANES):
            xb[lane] += xi[lane] * bi[lane]
            bb[lane] += bi[lane] * bi[lane]
            cb[lane] += ci[lane] * bi[lane]
