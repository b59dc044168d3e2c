"""Scores and log-densities of x_t = alpha x_0 + sigma z for mixtures, on blocks of LANES points.

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
def _isotropic_logits(x, alpha, variance, logw, mean, out, top):
    """log(w_k N(x; alpha m_k, variance)) + d/2 log 2 pi into ``out``; ``top`` keeps the running maximum."""
    dim = x.shape[0]
    half = -0.5 / variance
    constant = logw - 0.5 * dim * np.log(variance)
    # Two coordinates a sweep: half the traffic.
    one, first = x[0], alpha * mean[0]
    if dim % 2 == 1:
        for lane in range(LANES):
            gap = one[lane] - first
            out[lane] = constant + half * (gap * gap)
    else:
        two, second = x[1], alpha * mean[1]
        for lane in range(LANES):
            gap, other = one[lane] - first, two[lane] - second
            out[lane] = constant + half * (gap * gap + other * other)
    for c in range(2 - dim % 2, dim, 2):
        one, two, first, second = x[c], x[c + 1], alpha * mean[c], alpha * mean[c + 1]
        for lane in range(LANES):
            gap, other = one[lane] - first, two[lane] - second
            out[lane] += half * (gap * gap + other * other)
    for lane in range(LANES):
        top[lane] = out[lane] if out[lane] > top[lane] else top[lane]
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
def log_density(top, total, dim, out):
    """log p_t from the running maximum and the sum of exponentials."""
    constant = 0.5 * dim * np.log(2.0 * np.pi)
    for lane in range(LANES):
        out[lane] = top[lane] + log(total[lane]) - constant


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


SLOPE, FIRST, SECOND = range(1, 4)
"""Rows of the sums over components: of the weights (row 0), of weights / variance, and of these times two means."""


@inline
def _tabulate(alpha, sigma2, logw, variances, means):
    """What the sweeps need of each component: its constant, -1 / (2 variance), and its centre; (K, 2 + d)."""
    count, dim = means.shape
    table = np.empty((count, 2 + dim))
    for k in range(count):
        v = alpha * alpha * variances[k] + sigma2
        table[k, 0], table[k, 1] = logw[k] - 0.5 * dim * np.log(v), -0.5 / v
        for c in range(dim):
            table[k, 2 + c] = alpha * means[k, c]
    return table


@inline
def _logit_pair(x, first, second, one, two, top):
    """`_isotropic_logits` of two components with lines ``first`` and ``second`` of the table."""
    c1, h1, a1, b1 = first[0], first[1], first[2], first[3]
    c2, h2, a2, b2 = second[0], second[1], second[2], second[3]
    left, right = x[0], x[1]
    for lane in range(LANES):
        u, v = left[lane] - a1, right[lane] - b1
        one[lane] = c1 + h1 * (u * u + v * v)
        u, v = left[lane] - a2, right[lane] - b2
        two[lane] = c2 + h2 * (u * u + v * v)
    for c in range(2, x.shape[0]):
        row, a1, a2 = x[c], first[2 + c], second[2 + c]
        for lane in range(LANES):
            u, v = row[lane] - a1, row[lane] - a2
            one[lane] += h1 * (u * u)
            two[lane] += h2 * (v * v)
    for lane in range(LANES):
        high = one[lane] if one[lane] > two[lane] else two[lane]
        top[lane] = high if high > top[lane] else top[lane]


@inline
def _weigh_pair(first, second, one, two, top, sums, out):
    """Add two components to the sums; their logits become weights / variance."""
    i1, a1, b1 = -2.0 * first[1], first[2], first[3]
    i2, a2, b2 = -2.0 * second[1], second[2], second[3]
    for lane in range(LANES):
        p, q = exp_weight(one[lane] - top[lane]), exp_weight(two[lane] - top[lane])
        sums[lane] += p + q
        p *= i1
        q *= i2
        one[lane], two[lane] = p, q
        sums[SLOPE * LANES + lane] += p + q
        sums[FIRST * LANES + lane] += p * a1 + q * a2
        sums[SECOND * LANES + lane] += p * b1 + q * b2
    for c in range(2, out.shape[0]):
        target, a1, a2 = out[c], first[2 + c], second[2 + c]
        for lane in range(LANES):
            target[lane] += one[lane] * a1 + two[lane] * a2


@inline
def _weigh_one(line, logit, top, sums, out):
    """Add the last component of an odd number, or any in d = 1."""
    dim, inverse, first = out.shape[0], -2.0 * line[1], line[2]
    second = line[3] if dim > 1 else 0.0
    for lane in range(LANES):
        p = exp_weight(logit[lane] - top[lane])
        sums[lane] += p
        p *= inverse
        logit[lane] = p
        sums[SLOPE * LANES + lane] += p
        sums[FIRST * LANES + lane] += p * first
        sums[SECOND * LANES + lane] += p * second
    for c in range(2, dim):
        target, centre = out[c], line[2 + c]
        for lane in range(LANES):
            target[lane] += logit[lane] * centre


@inline
def _isotropic_score_alone(x, alpha, sigma2, a, c, logw, variances, means, out):
    """The score without divergence, density or component rows; components are taken two at a time, to save traffic."""
    count, dim = means.shape
    table = _tabulate(alpha, sigma2, logw, variances, means)
    # The sums are one array with rows a fixed distance apart: LLVM need not check that they do not overlap.
    logits, top, sums = np.empty((count, LANES)), np.full(LANES, -np.inf), np.zeros(4 * LANES)
    paired = count - count % 2 if dim > 1 else 0
    for k in range(0, paired, 2):
        _logit_pair(x, table[k], table[k + 1], logits[k], logits[k + 1], top)
    for k in range(paired, count):
        _isotropic_logits(x, alpha, -0.5 / table[k, 1], logw[k], means[k], logits[k], top)
    for i in range(2, dim):
        target = out[i]
        for lane in range(LANES):
            target[lane] = 0.0
    for k in range(0, paired, 2):
        _weigh_pair(table[k], table[k + 1], logits[k], logits[k + 1], top, sums, out)
    for k in range(paired, count):
        _weigh_one(table[k], logits[k], top, sums, out)
    # slope x + scale (sum of weights / variance times means), with the factors in place of the first two sums.
    for lane in range(LANES):
        scale = c / sums[lane]
        sums[lane] = scale
        sums[SLOPE * LANES + lane] = a - scale * sums[SLOPE * LANES + lane]
    for i in range(dim):
        source, target = x[i], out[i]
        if i < 2:
            for lane in range(LANES):
                target[lane] = sums[(FIRST + i) * LANES + lane]
        for lane in range(LANES):
            target[lane] = sums[SLOPE * LANES + lane] * source[lane] + sums[lane] * target[lane]


@kernel(field_signature)
def isotropic_score(x, row, params, out):
    """a x + c s for a mixture of isotropic Gaussians; cost K d per point."""
    alpha, sigma2, a, c = row[0], row[1], row[2], row[3]
    logw, _, variances, means = isotropic_parts(params)
    count, dim = means.shape
    extra = out.shape[0] - dim
    if extra == 0:
        _isotropic_score_alone(x, alpha, sigma2, a, c, logw, variances, means, out)
        return
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
        log_density(top, total, dim, out[dim + 1])
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
    finish(x, a, c, excess, extra, out)


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
    finish(x, a, c, excess, extra, out)


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
