"""Draws of x_t and the per-sample inner products from which every row of the ledger is made.

At a node with scalars (alpha, sigma) the kernel draws x = alpha x_0 + sigma z, evaluates b = sigma grad log p_t(x), and
keeps inner products of x and b, and of c where they are asked for.  Here c = sigma grad log p_t(x | k) is the score of the
one component k that x was drawn from; E[c | x] = b, which makes c a source of control variates.  For a point cloud c = -z.
All rates are linear in these numbers.  Draw, score and products are fused: a sample costs no other memory.
"""

from __future__ import annotations

import numpy as np
from numba import types

from thermodiff.kernels.clouds import cloud_parts
from thermodiff.kernels.controls import adjust_pointer, indices
from thermodiff.kernels.jit import LANES, field_pointer, inline, kernel, lanes, matrix, subroutine, tensor, vector, words
from thermodiff.kernels.march import copy_lanes
from thermodiff.kernels.philox import COMPONENT, NOISE, fill_rows, fill_uniforms
from thermodiff.kernels.scores import full_parts, isotropic_parts

GRAM = ("xx", "xb", "bb")
"""Inner products in the Gram kernel's output, after "div" (sigma div b), "logp" and the component rows."""
CONDITIONAL = ("xc", "cc", "cb")
"""Those that follow where they are asked for."""

draw_signature = types.void(words, types.int64, types.int64, matrix, vector, matrix, matrix)
"""``draw(key, path, node, scalars[m, 2], params, x[m d, LANES], c[m d, LANES])`` for LANES paths from ``path`` on.

Rows j d ... j d + d - 1 belong to node + j, whose (alpha, sigma) is ``scalars[j]``.  Consecutive nodes share counters: it
is cheaper to draw some of them at once.  ``c`` may be without rows: then it is not wanted.
"""

draw_pointer = types.FunctionType(draw_signature)

FEW = 8
"""Components up to which comparisons find what belongs to a lane's component."""


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


@inline
def _look_up(values, uniforms, cumulative, chosen, out):
    """The value of each lane's component; of few by comparisons, which are faster than a look into a table."""
    if values.size > FEW:
        for lane in range(LANES):
            out[lane] = values[chosen[lane]]
        return
    first = values[0]
    for lane in range(LANES):
        out[lane] = first
    for k in range(0, values.size - 1, 2):
        last = min(k + 2, values.size - 1)
        one, two, low, high = values[k + 1], values[last], cumulative[k], cumulative[last - 1]
        for lane in range(LANES):
            value = one if uniforms[lane] >= low else out[lane]
            out[lane] = two if uniforms[lane] >= high else value


@kernel(draw_signature)
def draw_isotropic(key, path, node, scalars, params, x, c):
    """x_t and component score for a mixture of isotropic Gaussians."""
    work, chosen, table = lanes(7), np.empty(LANES, np.int64), np.empty((2, int(params[0])))
    _draw_isotropic(key, path, node, scalars, params, x, c, work, chosen, table, np.ones(x.shape[0]))


@subroutine
def _draw_isotropic(key, path, node, scalars, params, x, c, work, chosen, table, ones):
    """`draw_isotropic`; ``table`` (2, K) holds the widths of the components and a coordinate of their centres."""
    _, cumulative, variances, means = isotropic_parts(params)
    dim = means.shape[1]
    quad, width, slope, centre, widths, centres = work[:4], work[4], work[5], work[6], table[0], table[1]
    fill_rows(key, path, node * dim, NOISE, quad, -1, ones, x)
    group = -1
    for j in range(scalars.shape[0]):
        alpha, sigma = scalars[j, 0], scalars[j, 1]
        group = _component_uniforms(key, path, node + j, group, quad)
        uniforms = quad[(node + j) % 4]
        if cumulative.size > FEW:
            _choose(uniforms, cumulative, chosen)
        # Within a component x_t is Gaussian: one normal per coordinate stands for x_0 and z together.
        for k in range(widths.size):
            widths[k] = np.sqrt(alpha * alpha * variances[k] + sigma * sigma)
        _look_up(widths, uniforms, cumulative, chosen, width)
        if c.shape[0] > 0:
            for lane in range(LANES):
                slope[lane] = -sigma / width[lane]
            for i in range(j * dim, (j + 1) * dim):
                normal, ci = x[i], c[i]
                for lane in range(LANES):
                    ci[lane] = slope[lane] * normal[lane]
        for i in range(dim):
            xi = x[j * dim + i]
            for k in range(centres.size):
                centres[k] = alpha * means[k, i]
            _look_up(centres, uniforms, cumulative, chosen, centre)
            for lane in range(LANES):
                xi[lane] = centre[lane] + width[lane] * xi[lane]


@kernel(draw_signature)
def draw_full(key, path, node, scalars, params, x, c):
    """x_t and component score for a mixture with full covariances."""
    count, dim = int(params[0]), int(params[1])
    work, chosen, widths = lanes(4 + x.shape[0]), np.empty(LANES, np.int64), np.empty((count, dim))
    _draw_full(key, path, node, scalars, params, x, c, work[:4], work[4:], chosen, widths, np.ones(x.shape[0]))


@subroutine
def _draw_full(key, path, node, scalars, params, x, c, quad, normals, chosen, widths, ones):
    """`draw_full`."""
    _, cumulative, means, eigenvalues, axes = full_parts(params)
    count, dim = means.shape
    wanted = c.shape[0] > 0
    fill_rows(key, path, node * dim, NOISE, quad, -1, ones, normals)
    group = -1
    for j in range(scalars.shape[0]):
        alpha, sigma, row = scalars[j, 0], scalars[j, 1], j * dim
        group = _component_uniforms(key, path, node + j, group, quad)
        _choose(quad[(node + j) % 4], cumulative, chosen)
        for k in range(count):
            for i in range(dim):
                widths[k, i] = np.sqrt(alpha * alpha * eigenvalues[k, i] + sigma * sigma)
        for lane in range(LANES):
            k = chosen[lane]
            for i in range(dim):
                x[row + i, lane] = alpha * means[k, i]
                if wanted:
                    c[row + i, lane] = 0.0
            # In the principal axes of the component.
            for axis in range(dim):
                offset = widths[k, axis] * normals[row + axis, lane]
                slope = -sigma / widths[k, axis] * normals[row + axis, lane]
                for i in range(dim):
                    x[row + i, lane] += axes[k, axis, i] * offset
                    if wanted:
                        c[row + i, lane] += axes[k, axis, i] * slope


@kernel(draw_signature)
def draw_cloud(key, path, node, scalars, params, x, c):
    """x_t for a point drawn uniformly from a cloud, and c = -z."""
    _draw_cloud(key, path, node, scalars, params, x, c, lanes(4), np.ones(x.shape[0]))


@subroutine
def _draw_cloud(key, path, node, scalars, params, x, c, quad, ones):
    """`draw_cloud`."""
    count, dim, points = cloud_parts(params)
    fill_rows(key, path, node * dim, NOISE, quad, -1, ones, x)
    group = -1
    for j in range(scalars.shape[0]):
        alpha, sigma, row = scalars[j, 0], scalars[j, 1], j * dim
        group = _component_uniforms(key, path, node + j, group, quad)
        uniforms = quad[(node + j) % 4]
        for lane in range(LANES):
            k = min(int(uniforms[lane] * count), count - 1)
            for i in range(dim):
                normal = x[row + i, lane]
                x[row + i, lane] = alpha * points[k, i] + sigma * normal
                if c.shape[0] > 0:
                    c[row + i, lane] = -normal


@kernel(types.void(draw_pointer, words, types.int64, types.int64, types.int64, matrix, vector, matrix, matrix))
def draws(draw, key, first, last, node, scalars, params, x, c):
    """x_t and c of blocks first ... last - 1 as columns of ``x[m d, n]`` and ``c[m d, n]``, for the nodes of ``scalars``."""
    block_x, block_c = lanes(x.shape[0]), lanes(c.shape[0])
    for block in range(first, last):
        draw(key, block * LANES, node, scalars, params, block_x, block_c)
        offset = (block - first) * LANES
        copy_lanes(block_x, 0, x, offset)
        copy_lanes(block_c, 0, c, offset)


@subroutine
def _gram(draw, field, key, first, last, node, scalars, params, x, c, row, out):
    """The rows of blocks first ... last - 1 at each node into ``out[m, d + blocks * G, LANES]``, block below block.

    G rows for each block: first those that the score field writes beyond the score, then `GRAM`, and `CONDITIONAL` where
    ``c`` has rows.  The score itself goes to the d rows in front of them, which belong to the block before: blocks are
    taken from the last to the first, so that its rows come later.
    """
    nodes, dim = scalars.shape[0], int(params[1])
    count = (out.shape[1] - dim) // (last - first)
    for block in range(last - 1, first - 1, -1):
        draw(key, block * LANES, node, scalars, params, x, c)
        start = (block - first) * count
        for j in range(nodes):
            here, table = slice(j * dim, (j + 1) * dim), out[j, start : start + dim + count]
            _products(field, scalars[j, 0], scalars[j, 1], params, x[here], c[here], row, table)


@subroutine
def _products(field, alpha, sigma, params, x, c, row, table):
    """b, what the field writes beyond it, and the inner products of each lane, one below the other."""
    dim, rest = x.shape[0], table.shape[0] - (3 if c.shape[0] == 0 else 6)
    # The field writes a x + c s: with c = sigma that is b.
    row[0], row[1], row[2], row[3] = alpha, sigma * sigma, 0.0, sigma
    field(x, row, params, table[:rest])
    divergence = table[dim]
    for lane in range(LANES):
        divergence[lane] *= sigma
    # x and b with themselves and each other; then c: with x, itself and b.
    _inner(x, table, dim, table[rest : rest + 3])
    if c.shape[0] > 0:
        _inner_conditional(x, c, table, dim, table[rest + 3 :])


@inline
def _inner(x, b, dim, out):
    """x.x, x.b and b.b."""
    xx, xb, bb = out[0], out[1], out[2]
    # Two coordinates in the first sweep: half of the loads and stores of the sums.
    p, q, v, w = x[0], x[min(1, dim - 1)], b[0], b[min(1, dim - 1)]
    if dim > 1:
        for lane in range(LANES):
            xx[lane] = p[lane] * p[lane] + q[lane] * q[lane]
            xb[lane] = p[lane] * v[lane] + q[lane] * w[lane]
            bb[lane] = v[lane] * v[lane] + w[lane] * w[lane]
    else:
        for lane in range(LANES):
            xx[lane], xb[lane], bb[lane] = p[lane] * p[lane], p[lane] * v[lane], v[lane] * v[lane]
    for i in range(2, dim):
        xi, bi = x[i], b[i]
        for lane in range(LANES):
            xx[lane] += xi[lane] * xi[lane]
            xb[lane] += xi[lane] * bi[lane]
            bb[lane] += bi[lane] * bi[lane]


@inline
def _inner_conditional(x, c, b, dim, out):
    """x.c, c.c and c.b."""
    xc, cc, cb = out[0], out[1], out[2]
    for lane in range(LANES):
        xc[lane], cc[lane], cb[lane] = 0.0, 0.0, 0.0
    for i in range(dim):
        xi, ci, bi = x[i], c[i], b[i]
        for lane in range(LANES):
            xc[lane] += xi[lane] * ci[lane]
            cc[lane] += ci[lane] * ci[lane]
            cb[lane] += ci[lane] * bi[lane]


@kernel(
    types.void(
        draw_pointer, field_pointer, types.int64, words, types.int64, types.int64, types.int64, matrix, vector, tensor
    )
)
def gram(draw, field, conditional, key, first, last, node, scalars, params, out):
    """`_gram`, called from Python; with ``conditional`` = 1 the rows of c are among them, with 0 they are not."""
    rows = scalars.shape[0] * int(params[1])
    x, c = lanes(rows), lanes(conditional * rows)
    _gram(draw, field, key, first, last, node, scalars, params, x, c, np.empty(4), out)


def as_rows(found: np.ndarray, dim: int, count: int) -> np.ndarray:
    """What `gram` wrote, (m, d + blocks * G, LANES), as rows (m, G, blocks * LANES)."""
    blocks = found[:, dim:].reshape(len(found), -1, count, LANES)
    return blocks.transpose(0, 2, 1, 3).reshape(len(found), count, -1)


@kernel(
    types.void(
        draw_pointer,
        field_pointer,
        types.int64,
        adjust_pointer,
        words,
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
    conditional,
    adjust,
    key,
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
    ``work`` (g, d + blocks * G, LANES) holds g nodes at a time, ``values`` and ``sums`` are (R, samples), ``statistics``
    (m, R, 2); the rest as for `gram` and `controls.adjust`.
    """
    samples, dim = sums.shape[1], int(params[1])
    rows = min(work.shape[0], scalars.shape[0]) * dim
    x, c, row = lanes(rows), lanes(conditional * rows), np.empty(4)
    for start in range(0, scalars.shape[0], work.shape[0]):
        size = min(work.shape[0], scalars.shape[0] - start)
        here, most = scalars[start : start + size], size * dim
        _gram(draw, field, key, 0, -(-samples // LANES), node + start, here, params, x[:most], c[:most], row, work)
        for j in range(start, start + size):
            given = work[j - start, dim:]
            adjust(given, samples, fitted, columns, factors[j], products, sizes[j], limits, values, statistics[j])
            for r in range(sums.shape[0]):
                total, value, weight = sums[r], values[r], weights[j]
                for n in range(samples):
                    total[n] += weight * value[n]
