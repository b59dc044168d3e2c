"""Scores and log-densities of x_t = alpha x_0 + sigma z for mixtures, on blocks of LANES points.

Every field has the signature of `jit.field_signature`.  The row of scalars is ``(alpha, sigma**2, a, c)``:

* a *score field* writes ``a x + c s(x)`` with s = grad log p_t into the first d rows of ``out``; the score itself is
  (a, c) = (0, 1).  If ``out`` has more rows it adds the exact divergence ``a d + c div s`` (row d), log p_t (row d + 1),
  and, for mixtures and as far as there are rows, r_k - w_k and r_k (y' C_k^-1 y - d) for each component, y = x - alpha m_k:
  quantities whose mean is zero;
* a *density field* writes log p_t(x) into row 0 and the entropy of the responsibilities H(r(x)) (nats) into row 1.

Logits are to base 2: the exponential of a difference then needs no reduction by ln 2.

The law travels in one flat vector ``params``; its layout is made by the ``pack_`` functions at the end, so that one
compiled integrator serves every law.  Constants of a component are formed once per block.
"""

from __future__ import annotations

import numpy as np

from thermodiff.kernels.elementary import LN2, LOG2E, exp2_weight, log
from thermodiff.kernels.jit import LANES, field_signature, inline, kernel, lanes, subroutine


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
    """log2(w_k N(x; alpha m_k, alpha^2 C_k + sigma^2)) + d/2 log2 2 pi, in the principal axes; returns its constant."""
    dim = x.shape[0]
    constant = LOG2E * logw
    for lane in range(LANES):
        out[lane] = 0.0
    for j in range(dim):
        variance = alpha * alpha * eigenvalues[j] + sigma2
        constant -= 0.5 * LOG2E * np.log(variance)
        _project(x, alpha, mean, axes[j], work)
        half = -0.5 * LOG2E / variance
        for lane in range(LANES):
            out[lane] += half * work[lane] * work[lane]
    for lane in range(LANES):
        value = constant + out[lane]
        out[lane] = value
        top[lane] = value if value > top[lane] else top[lane]
    return constant


@inline
def _soften(logits, top, total):
    """2**(logit - top) in place; returns with the sums in ``total``."""
    for lane in range(LANES):
        total[lane] = 0.0
    for k in range(logits.shape[0]):
        row = logits[k]
        for lane in range(LANES):
            value = exp2_weight(row[lane] - top[lane])
            row[lane] = value
            total[lane] += value


@inline
def _squares(logits, constants, dim, unit):
    """y' C_k^-1 y - d of each component, which is in the logits until the exponentials overwrite them."""
    for k in range(logits.shape[0]):
        source, target = logits[k], unit[k]
        for lane in range(LANES):
            target[lane] = 2.0 * LN2 * (constants[k] - source[lane]) - dim


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
def log_density(top, total, dim, out):
    """log p_t from the running maximum and the sum of exponentials."""
    constant = 0.5 * dim * np.log(2.0 * np.pi)
    for lane in range(LANES):
        out[lane] = LN2 * top[lane] + log(total[lane]) - constant


@inline
def finish(x, a, c, excess, extra, out):
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


CONSTANT, SCALE, BESIDE, INVERSE, SHIFTS = range(5)
"""Columns of `_tabulate`; from SHIFTS on two for each coordinate."""

SLOPE, FIRST, SECOND, ROWS = range(1, 5)
"""Rows of the sums over components: of the weights (row 0), of weights / variance, and of these times two means."""

# The sums are one flat array with rows LANES apart: LLVM need not check that they do not overlap.


@inline
def _tabulate(alpha, sigma2, logw, variances, means, table):
    """What the sweeps need of each component k, v = alpha^2 variance + sigma^2, one line of ``table`` for each.

    Its constant and q = sqrt(log2(e) / 2v), with which the logit is constant - |q x - q alpha m_k|^2; q once more for the
    second coordinate, zero in d = 1; 1 / v; and for each coordinate (two at least) -q alpha m_k and alpha m_k / v.
    """
    count, dim = means.shape
    table[:, :] = 0.0
    for k in range(count):
        v = alpha * alpha * variances[k] + sigma2
        scale = np.sqrt(0.5 * LOG2E / v)
        table[k, CONSTANT] = LOG2E * (logw[k] - 0.5 * dim * np.log(v))
        table[k, SCALE], table[k, BESIDE], table[k, INVERSE] = scale, (scale if dim > 1 else 0.0), 1.0 / v
        for c in range(dim):
            centre = alpha * means[k, c]
            table[k, SHIFTS + 2 * c], table[k, SHIFTS + 2 * c + 1] = -scale * centre, centre / v


@inline
def _logit_pair(x, first, second, one, two, top, fresh):
    """Logits of two components; ``top`` keeps the running maximum, from -inf where ``fresh``."""
    c1, q1, r1, a1, b1 = first[CONSTANT], first[SCALE], first[BESIDE], first[SHIFTS], first[SHIFTS + 2]
    c2, q2, r2, a2, b2 = second[CONSTANT], second[SCALE], second[BESIDE], second[SHIFTS], second[SHIFTS + 2]
    dim = x.shape[0]
    left, right = x[0], x[min(1, dim - 1)]
    for lane in range(LANES):
        u, v = q1 * left[lane] + a1, r1 * right[lane] + b1
        one[lane] = (c1 - u * u) - v * v
        u, v = q2 * left[lane] + a2, r2 * right[lane] + b2
        two[lane] = (c2 - u * u) - v * v
    for c in range(2, dim):
        row, a1, a2 = x[c], first[SHIFTS + 2 * c], second[SHIFTS + 2 * c]
        for lane in range(LANES):
            u, v = q1 * row[lane] + a1, q2 * row[lane] + a2
            one[lane] -= u * u
            two[lane] -= v * v
    for lane in range(LANES):
        before = -np.inf if fresh else top[lane]
        high = one[lane] if one[lane] > two[lane] else two[lane]
        top[lane] = high if high > before else before


@inline
def _logit_one(x, line, out, top, fresh):
    """`_logit_pair` for one component."""
    constant, q, r, a, b = line[CONSTANT], line[SCALE], line[BESIDE], line[SHIFTS], line[SHIFTS + 2]
    dim = x.shape[0]
    left, right = x[0], x[min(1, dim - 1)]
    for lane in range(LANES):
        u, v = q * left[lane] + a, r * right[lane] + b
        out[lane] = (constant - u * u) - v * v
    for c in range(2, dim):
        row, a = x[c], line[SHIFTS + 2 * c]
        for lane in range(LANES):
            u = q * row[lane] + a
            out[lane] -= u * u
    for lane in range(LANES):
        before = -np.inf if fresh else top[lane]
        top[lane] = out[lane] if out[lane] > before else before


@inline
def _isotropic_logits(x, table, logits, top):
    """log2(w_k N(x; alpha m_k, v)) + d/2 log2 2 pi of all components, and the largest."""
    count = table.shape[0]
    if count == 1:
        _logit_one(x, table[0], logits[0], top, True)
        return
    _logit_pair(x, table[0], table[1], logits[0], logits[1], top, True)
    for k in range(2, count - 1, 2):
        _logit_pair(x, table[k], table[k + 1], logits[k], logits[k + 1], top, False)
    if count % 2 == 1:
        _logit_one(x, table[count - 1], logits[count - 1], top, False)


@inline
def _so_far(value, fresh):
    """A sum before this sweep; what is constant here the compiler folds, which saves filling the sums with zeros."""
    return 0.0 if fresh else value


@inline
def _weigh_four(table, logits, top, sums, out, fresh):
    """Add four components to the sums, and to ``out`` the coordinates from the third on; their logits become weights."""
    i1, a1, b1 = table[0, INVERSE], table[0, SHIFTS + 1], table[0, SHIFTS + 3]
    i2, a2, b2 = table[1, INVERSE], table[1, SHIFTS + 1], table[1, SHIFTS + 3]
    i3, a3, b3 = table[2, INVERSE], table[2, SHIFTS + 1], table[2, SHIFTS + 3]
    i4, a4, b4 = table[3, INVERSE], table[3, SHIFTS + 1], table[3, SHIFTS + 3]
    one, two, three, four = logits[0], logits[1], logits[2], logits[3]
    for lane in range(LANES):
        p1, p2 = exp2_weight(one[lane] - top[lane]), exp2_weight(two[lane] - top[lane])
        p3, p4 = exp2_weight(three[lane] - top[lane]), exp2_weight(four[lane] - top[lane])
        one[lane], two[lane], three[lane], four[lane] = p1, p2, p3, p4
        first, second = FIRST * LANES + lane, SECOND * LANES + lane
        slope = SLOPE * LANES + lane
        sums[lane] = _so_far(sums[lane], fresh) + ((p1 + p2) + (p3 + p4))
        sums[slope] = _so_far(sums[slope], fresh) + ((p1 * i1 + p2 * i2) + (p3 * i3 + p4 * i4))
        sums[first] = _so_far(sums[first], fresh) + ((p1 * a1 + p2 * a2) + (p3 * a3 + p4 * a4))
        sums[second] = _so_far(sums[second], fresh) + ((p1 * b1 + p2 * b2) + (p3 * b3 + p4 * b4))
    for c in range(2, out.shape[0]):
        target, column = out[c], SHIFTS + 2 * c + 1
        a1, a2, a3, a4 = table[0, column], table[1, column], table[2, column], table[3, column]
        for lane in range(LANES):
            here = (one[lane] * a1 + two[lane] * a2) + (three[lane] * a3 + four[lane] * a4)
            target[lane] = _so_far(target[lane], fresh) + here


@inline
def _weigh_one(line, logit, top, sums, out, fresh):
    """`_weigh_four` for one component."""
    inverse, a, b = line[INVERSE], line[SHIFTS + 1], line[SHIFTS + 3]
    for lane in range(LANES):
        p = exp2_weight(logit[lane] - top[lane])
        logit[lane] = p
        slope, first, second = SLOPE * LANES + lane, FIRST * LANES + lane, SECOND * LANES + lane
        sums[lane] = _so_far(sums[lane], fresh) + p
        sums[slope] = _so_far(sums[slope], fresh) + p * inverse
        sums[first] = _so_far(sums[first], fresh) + p * a
        sums[second] = _so_far(sums[second], fresh) + p * b
    for c in range(2, out.shape[0]):
        target, centre = out[c], line[SHIFTS + 2 * c + 1]
        for lane in range(LANES):
            target[lane] = _so_far(target[lane], fresh) + logit[lane] * centre


@inline
def _weigh_all(table, logits, top, sums, out):
    """The sums over all components."""
    count = table.shape[0]
    fours = count - count % 4
    if fours > 0:
        _weigh_four(table[:4], logits[:4], top, sums, out, True)
    else:
        _weigh_one(table[0], logits[0], top, sums, out, True)
    for k in range(4, fours, 4):
        _weigh_four(table[k : k + 4], logits[k : k + 4], top, sums, out, False)
    for k in range(max(fours, 1), count):
        _weigh_one(table[k], logits[k], top, sums, out, False)


@inline
def _combine(x, a, c, sums, out):
    """a x + c s, with s = (sum of weights / variance times (mean - x)) / (sum of weights)."""
    dim = x.shape[0]
    left, right = x[0], x[min(1, dim - 1)]
    one, two = out[0], out[1] if dim > 1 else sums[SECOND * LANES : ROWS * LANES]
    for lane in range(LANES):
        scale = c / sums[lane]
        slope = a - scale * sums[SLOPE * LANES + lane]
        one[lane] = slope * left[lane] + scale * sums[FIRST * LANES + lane]
        two[lane] = slope * right[lane] + scale * sums[SECOND * LANES + lane]
        if dim > 2:
            sums[lane], sums[SLOPE * LANES + lane] = scale, slope
    for i in range(2, dim):
        source, target = x[i], out[i]
        for lane in range(LANES):
            target[lane] = sums[SLOPE * LANES + lane] * source[lane] + sums[lane] * target[lane]


@inline
def _isotropic_rows(inverse, share, weight, unit, scale, excess, first, second, fresh):
    """The two rows of a component, see `_component_rows`, and its part of the mean of (y' C_k^-1 y - d) / v."""
    for lane in range(LANES):
        r = weight[lane] * scale[lane]
        moment = r * unit[lane]
        first[lane], second[lane] = r - share, moment
        excess[lane] = _so_far(excess[lane], fresh) + inverse * moment


@kernel(field_signature)
def isotropic_score(x, row, params, out):
    """a x + c s for a mixture of isotropic Gaussians; cost K d per point."""
    count, dim = int(params[0]), int(params[1])
    table, work = np.empty((count, SHIFTS + 2 * max(dim, 2))), lanes(count + 1 + ROWS).reshape(-1)
    _isotropic_score(x, row, params, out, table, work, lanes(count + 3 if out.shape[0] > dim else 0))


@subroutine
def _isotropic_score(x, row, params, out, table, work, unit):
    """`isotropic_score`; ``unit`` is for what it writes beyond the score."""
    alpha, sigma2, a, c = row[0], row[1], row[2], row[3]
    logw, _, variances, means = isotropic_parts(params)
    count, dim = means.shape
    extra = out.shape[0] - dim
    _tabulate(alpha, sigma2, logw, variances, means, table)
    logits, top = work[: count * LANES].reshape(count, LANES), work[count * LANES : (count + 1) * LANES]
    sums = work[(count + 1) * LANES :]
    _isotropic_logits(x, table, logits, top)
    if extra == 0:
        _weigh_all(table, logits, top, sums, out)
        _combine(x, a, c, sums, out)
        return
    total, excess = sums[:LANES], unit[count + 2]
    _squares(logits, table[:, CONSTANT], dim, unit)
    _weigh_all(table, logits, top, sums, out[:dim])
    if extra > 1:
        log_density(top, total, dim, out[dim + 1])
    for lane in range(LANES):
        top[lane] = 1.0 / total[lane]
    for k in range(count):
        # Without room for them the rows go where nobody reads them.
        first, second = (out[dim + 2 + 2 * k], out[dim + 3 + 2 * k]) if extra > 2 else (unit[count], unit[count + 1])
        _isotropic_rows(table[k, INVERSE], np.exp(logw[k]), logits[k], unit[k], top, excess, first, second, k == 0)
    _combine(x, 0.0, 1.0, sums, out)
    # excess: |g_k|^2 - d / v_k = (y' C_k^-1 y - d) / v_k
    finish(x, a, c, excess, extra, out)


@kernel(field_signature)
def isotropic_density(x, row, params, out):
    """log p_t and H(r) for a mixture of isotropic Gaussians."""
    count, dim = int(params[0]), int(params[1])
    _isotropic_density(x, row, params, out, np.empty((count, SHIFTS + 2 * max(dim, 2))), lanes(count + 3))


@subroutine
def _isotropic_density(x, row, params, out, table, work):
    """`isotropic_density`."""
    logw, _, variances, means = isotropic_parts(params)
    count, dim = means.shape
    logits, top = work[:count], work[count]
    _tabulate(row[0], row[1], logw, variances, means, table)
    _isotropic_logits(x, table, logits, top)
    _log_sum(logits, top, work[count + 1], work[count + 2], dim, out)


@inline
def _log_sum(logits, top, total, moment, dim, out):
    """Row 0: log sum exp of the logits - d/2 log 2 pi; row 1: the entropy of their softmax."""
    for lane in range(LANES):
        total[lane], moment[lane] = 0.0, 0.0
    for k in range(logits.shape[0]):
        row = logits[k]
        for lane in range(LANES):
            gap = row[lane] - top[lane]
            value = exp2_weight(gap)
            total[lane] += value
            moment[lane] += value * (gap if gap > -800.0 else 0.0)
    density, entropy = out[0], out[1]
    constant = 0.5 * dim * np.log(2.0 * np.pi)
    for lane in range(LANES):
        log_total = log(total[lane])
        density[lane] = LN2 * top[lane] + log_total - constant
        entropy[lane] = log_total - LN2 * moment[lane] / total[lane]


@kernel(field_signature)
def full_score(x, row, params, out):
    """a x + c s for a mixture with full covariances; cost K d^2 per point."""
    count, dim = int(params[0]), int(params[1])
    logits, unit = lanes(count), lanes(count if out.shape[0] > dim else 0)
    _full_score(x, row, params, out, logits, unit, np.empty(count), lanes(4))


@subroutine
def _full_score(x, row, params, out, logits, unit, constants, work):
    """`full_score`; ``unit`` is for what it writes beyond the score."""
    alpha, sigma2, a, c = row[0], row[1], row[2], row[3]
    logw, _, means, eigenvalues, axes = full_parts(params)
    count, dim = means.shape
    extra = out.shape[0] - dim
    top, total, place, excess = work[0], work[1], work[2], work[3]
    for lane in range(LANES):
        top[lane], excess[lane] = -np.inf, 0.0
    for k in range(count):
        constants[k] = _full_logits(x, alpha, sigma2, logw[k], means[k], eigenvalues[k], axes[k], logits[k], top, place)
    if extra > 0:
        _squares(logits, constants, dim, unit)
    _soften(logits, top, total)
    if extra > 1:
        log_density(top, total, dim, out[dim + 1])
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
            _project(x, alpha, means[k], axes[k, j], place)
            if extra > 0:
                for lane in range(LANES):
                    excess[lane] += weight[lane] * inverse * (inverse * place[lane] * place[lane] - 1.0)
            for lane in range(LANES):
                place[lane] *= weight[lane] * inverse
            for i in range(dim):
                target, component = out[i], axes[k, j, i]
                for lane in range(LANES):
                    target[lane] -= component * place[lane]
    finish(x, a, c, excess, extra, out)


@kernel(field_signature)
def full_density(x, row, params, out):
    """log p_t and H(r) for a mixture with full covariances."""
    _full_density(x, row, params, out, lanes(int(params[0]) + 3))


@subroutine
def _full_density(x, row, params, out, work):
    """`full_density`."""
    alpha, sigma2 = row[0], row[1]
    logw, _, means, eigenvalues, axes = full_parts(params)
    count, dim = means.shape
    logits, top, total, moment = work[:count], work[count], work[count + 1], work[count + 2]
    for lane in range(LANES):
        top[lane] = -np.inf
    for k in range(count):
        _full_logits(x, alpha, sigma2, logw[k], means[k], eigenvalues[k], axes[k], logits[k], top, total)
    _log_sum(logits, top, total, moment, dim, out)


def pack_isotropic(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Flat parameters of `isotropic_score`: weights (K,), means (K, d), variances (K,)."""
    return np.concatenate([means.shape, np.log(weights), _cumulative(weights), variances, means.ravel()])


def pack_full(weights: np.ndarray, means: np.ndarray, eigenvalues: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Flat parameters of `full_score`: eigenvalues (K, d) and ``axes`` (K, d, d), whose rows are the eigenvectors."""
    parts = [means.shape, np.log(weights), _cumulative(weights), means.ravel(), eigenvalues.ravel(), axes.ravel()]
    return np.concatenate(parts)


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """Upper edges of the components in (0, 1); the last is 1 exactly, so that every uniform finds one."""
    edges = np.cumsum(weights) / np.sum(weights)
    edges[-1] = 1.0
    return edges
