"""Draws of x_t and the per-sample inner products from which every row of the ledger is made.

At a node with scalars (alpha, sigma) the kernel draws x = alpha x_0 + sigma z, evaluates b = sigma grad log p_t(x), and
keeps inner products of x, b and c.  Here c = sigma grad log p_t(x | k) is the score of the one component k that x was
drawn from; E[c | x] = b, which makes c the source of control variates.  For a point cloud c = -z.  All rates are linear in
these numbers.  Draw, score and products are fused: a sample costs no other memory.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.clouds import cloud_parts
from thermodiff.kernels.controls import adjust_pointer, indices
from thermodiff.kernels.jit import LANES, field_pointer, inline, kernel, matrix, subroutine, tensor, vector, words
from thermodiff.kernels.philox import COMPONENT, NOISE, fill_rows, fill_uniforms
from thermodiff.kernels.scores import full_parts, isotropic_parts

GRAM = ("xx", "xc", "cc", "xb", "bb", "cb")
"""Inner products in the Gram kernel's output; "div" (sigma div b), "logp" and the component rows follow."""

draw_signature = types.void(words, types.int64, types.int64, matrix, vector, matrix, matrix)
"""``draw(key, path, node, scalars[m, 2], params, x[m d, LANES], c[m d, LANES])`` for LANES paths from ``path`` on.

Rows j d ... j d + d - 1 belong to node + j, whose (alpha, sigma) is ``scalars[j]``.  Consecutive nodes share counters: it
is cheaper to draw four of them at once.
"""

draw_pointer = types.FunctionType(draw_signature)


@inline
def _component_uniforms(key, path, node, group, quad):
    """Refill ``quad`` where this node needs another group of four uniforms; returns the group that it holds."""
    if node // 4 != group:
        fill_uniforms(key, path, node // 4, COMPONENT, quad)
    return node // 4


@inline
def _choose(uniforms, cumulative, chosen):
    """The component of each lane, by inversion of the cumulative weights."""
    for lane in range(LANES):
        chosen[lane] = 0
    for k in range(cumulative.size - 1):
        edge = cumulative[k]
        for lane in range(LANES):
            chosen[lane] += 1 if uniforms[lane] >= edge else 0


@kernel(draw_signature)
def draw_isotropic(key, path, node, scalars, params, x, c):
    """x_t and component score for a mixture of isotropic Gaussians."""
    _, cumulative, variances, means = isotropic_parts(params)
    dim = means.shape[1]
    quad, chosen = np.empty((4, LANES)), np.empty(LANES, np.int64)
    width, slope = np.empty(LANES), np.empty(LANES)
    fill_rows(key, path, node * dim, NOISE, quad, -1, c)
    group = -1
    for j in range(scalars.shape[0]):
        alpha, sigma = scalars[j, 0], scalars[j, 1]
        group = _component_uniforms(key, path, node + j, group, quad)
        _choose(quad[(node + j) % 4], cumulative, chosen)
        # Within a component x_t is Gaussian: one normal per coordinate stands for x_0 and z together.
        widths = np.sqrt(alpha * alpha * variances + sigma * sigma)
        for lane in range(LANES):
            width[lane] = widths[chosen[lane]]
        for lane in range(LANES):
            slope[lane] = -sigma / width[lane]
        for i in range(dim):
            xi, ci, centres = x[j * dim + i], c[j * dim + i], alpha * means[:, i]
            for lane in range(LANES):
                normal = ci[lane]
                xi[lane] = centres[chosen[lane]] + width[lane] * normal
                ci[lane] = slope[lane] * normal


@kernel(draw_signature)
def draw_full(key, path, node, scalars, params, x, c):
    """x_t and component score for a mixture with full covariances."""
    _, cumulative, means, eigenvalues, axes = full_parts(params)
    dim = means.shape[1]
    quad, chosen = np.empty((4, LANES)), np.empty(LANES, np.int64)
    normals = np.empty((x.shape[0], LANES))
    fill_rows(key, path, node * dim, NOISE, quad, -1, normals)
    group = -1
    for j in range(scalars.shape[0]):
        alpha, sigma, row = scalars[j, 0], scalars[j, 1], j * dim
        group = _component_uniforms(key, path, node + j, group, quad)
        _choose(quad[(node + j) % 4], cumulative, chosen)
        widths = np.sqrt(alpha * alpha * eigenvalues + sigma * sigma)
        for lane in range(LANES):
            k = chosen[lane]
            for i in range(dim):
                x[row + i, lane] = alpha * means[k, i]
                c[row + i, lane] = 0.0
            # In the principal axes of the component.
            for axis in range(dim):
                offset = widths[k, axis] * normals[row + axis, lane]
                slope = -sigma / widths[k, axis] * normals[row + axis, lane]
                for i in range(dim):
                    x[row + i, lane] += axes[k, axis, i] * offset
                    c[row + i, lane] += axes[k, axis, i] * slope


@kernel(draw_signature)
def draw_cloud(key, path, node, scalars, params, x, c):
    """x_t for a point drawn uniformly from a cloud, and c = -z."""
    points = cloud_parts(params)
    count, dim = points.shape
    quad = np.empty((4, LANES))
    fill_rows(key, path, node * dim, NOISE, quad, -1, c)
    group = -1
    for j in range(scalars.shape[0]):
        alpha, sigma, row = scalars[j, 0], scalars[j, 1], j * dim
        group = _component_uniforms(key, path, node + j, group, quad)
        uniforms = quad[(node + j) % 4]
        for lane in range(LANES):
            k = min(int(uniforms[lane] * count), count - 1)
            for i in range(dim):
                x[row + i, lane] = alpha * points[k, i] + sigma * c[row + i, lane]
                c[row + i, lane] = -c[row + i, lane]


@kernel(types.void(draw_pointer, words, types.int64, types.int64, types.int64, matrix, vector, matrix, matrix))
def draws(draw, key, first, last, node, scalars, params, x, c):
    """x_t and c of blocks first ... last - 1 as columns of ``x[m d, n]`` and ``c[m d, n]``, for the nodes of ``scalars``."""
    block_x, block_c = np.empty((x.shape[0], LANES)), np.empty((x.shape[0], LANES))
    for block in range(first, last):
        draw(key, block * LANES, node, scalars, params, block_x, block_c)
        offset = (block - first) * LANES
        x[:, offset : offset + LANES] = block_x
        c[:, offset : offset + LANES] = block_c


@subroutine
def _gram(draw, field, key, first, last, node, scalars, params, out):
    """Inner products and extra rows of blocks first ... last - 1 into their columns of ``out[m, row, n]``.

    The rows of `GRAM` come first, then those that the score field writes beyond the score.
    """
    nodes, dim = scalars.shape[0], int(params[1])
    extra = out.shape[1] - 6
    x, c, b = np.empty((nodes * dim, LANES)), np.empty((nodes * dim, LANES)), np.empty((dim + extra, LANES))
    row = np.zeros(4)
    for block in range(first, last):
        draw(key, block * LANES, node, scalars, params, x, c)
        start, stop = block * LANES, (block + 1) * LANES
        for j in range(nodes):
            alpha, sigma = scalars[j, 0], scalars[j, 1]
            # The field writes a x + c s: with c = sigma that is b.
            row[0], row[1], row[3] = alpha, sigma * sigma, sigma
            here = slice(j * dim, (j + 1) * dim)
            field(x[here], row, params, b)
            _products(x[here], c[here], b, out[j, :, start:stop])
            divergence = out[j, 6, start:stop]
            for lane in range(LANES):
                divergence[lane] = sigma * b[dim, lane]
            for r in range(1, extra):
                source, target = b[dim + r], out[j, 6 + r, start:stop]
                for lane in range(LANES):
                    target[lane] = source[lane]


@inline
def _products(x, c, b, sums):
    """The six inner products of each lane."""
    xx, xc, cc, xb, bb, cb = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    for i in range(x.shape[0]):
        xi, ci, bi = x[i], c[i], b[i]
        if i == 0:
            for lane in range(LANES):
                xx[lane] = xi[lane] * xi[lane]
                xc[lane] = xi[lane] * ci[lane]
                cc[lane] = ci[lane] * ci[lane]
            for lane in range(LANES):
                xb[lane] = xi[lane] * bi[lane]
                bb[lane] = bi[lane] * bi[lane]
                cb[lane] = ci[lane] * bi[lane]
        else:
            for lane in range(LANES):
                xx[lane] += xi[lane] * xi[lane]
                xc[lane] += xi[lane] * ci[lane]
                cc[lane] += ci[lane] * ci[lane]
            for lane in range(LANES):
                xb[lane] += xi[lane] * bi[lane]
                bb[lane] += bi[lane] * bi[lane]
                cb[lane] += ci[lane] * bi[lane]


@kernel(types.void(draw_pointer, field_pointer, words, types.int64, types.int64, types.int64, matrix, vector, tensor))
def gram(draw, field, key, first, last, node, scalars, params, out):
    """`_gram`, called from Python."""
    _gram(draw, field, key, first, last, node, scalars, params, out)


@kernel(
    types.void(
        draw_pointer,
        field_pointer,
        adjust_pointer,
        words,
        types.int64,
        types.int64,
        matrix,
        vector,
        types.int64,
        indices,
        tensor,
        indices,
        matrix,
        vector,
        vector,
        tensor,
        matrix,
        matrix,
        tensor,
    )
)
def integrate(
    draw,
    field,
    adjust,
    key,
    chunk,
    node,
    scalars,
    params,
    fitted,
    columns,
    factors,
    products,
    sizes,
    limits,
    weights,
    work,
    values,
    sums,
    statistics,
):
    """Draw, evaluate and adjust all samples of the nodes from ``node`` on, and add up the values by ``weights``.

    One call without a return to Python: threads that hand Python's lock to each other at every node run one at a time.
    ``work`` (g, G, >= samples) holds g nodes at a time, ``values`` and ``sums`` are (R, samples), ``statistics`` (m, R, 2);
    the rest as for `gram` and `controls.adjust`.
    """
    samples, blocks = sums.shape[1], -(-sums.shape[1] // LANES)
    for start in range(0, scalars.shape[0], work.shape[0]):
        size = min(work.shape[0], scalars.shape[0] - start)
        for first in range(0, blocks, chunk):
            last = min(first + chunk, blocks)
            _gram(draw, field, key, first, last, node + start, scalars[start : start + size], params, work)
        for j in range(start, start + size):
            given = work[j - start]
            adjust(given, samples, fitted, columns, factors[j], products, sizes[j], limits, values, statistics[j])
            for r in range(sums.shape[0]):
                row, value, weight = sums[r], values[r], weights[j]
                for n in range(samples):
                    row[n] += weight * value[n]
