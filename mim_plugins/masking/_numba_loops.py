"""The compiled loops of :mod:`._numba`. Importing this needs numba."""

# numba compiles these functions; they are untyped.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit

from .kernels import LARGEST, MEDIAN_ROWS

TINY = float(np.finfo(np.float32).tiny)

LANES = 16  # columns, i.e. units, are padded to whole vectors of float32
ROWS = 8  # rows of a matrix are used eight at a time, so that a sum is loaded and stored less
# Gains above this share of the largest diagonal element keep four digits in float32.
SMALLEST_FLOAT32_GAIN = 1e-2
GIVEN, RBF, COSINE = 0, 1, 2  # where the rows of the kernel come from


def _compiled(function):
    """Without the GIL; on disk for the next process where there is a place to write."""
    # Sums may be reordered, which vectorises them. Infinities count, NaN does not occur.
    options = {"nogil": True, "fastmath": {"reassoc", "nsz", "contract"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no writable directory for the cache
        return njit(**options)(function)


@_compiled
def _zeros(rows, columns, dtype):
    """Zeros, padded to whole blocks, with every row aligned to 64 bytes."""
    rows, columns = -(-rows // ROWS) * ROWS, -(-columns // LANES) * LANES
    memory = np.empty(rows * columns + 16, dtype=dtype)
    skip = -(memory.ctypes.data // memory.itemsize) % (64 // memory.itemsize)
    matrix = memory[skip : skip + rows * columns].reshape(rows, columns)
    matrix[:] = 0
    return matrix


@_compiled
def _subtract_rows(c, t, j, e):
    """``e -= c[:t, j] @ c[:t]``; rows t and beyond up to a whole block must be 0."""
    for s in range(0, t, ROWS):
        c0, c1, c2, c3 = c[s, j], c[s + 1, j], c[s + 2, j], c[s + 3, j]
        c4, c5, c6, c7 = c[s + 4, j], c[s + 5, j], c[s + 6, j], c[s + 7, j]
        for i in range(len(e)):
            e[i] -= (
                (c0 * c[s, i] + c1 * c[s + 1, i])
                + (c2 * c[s + 2, i] + c3 * c[s + 3, i])
                + (c4 * c[s + 4, i] + c5 * c[s + 5, i])
                + (c6 * c[s + 6, i] + c7 * c[s + 7, i])
            )


@_compiled
def _squared_distances(x, j, out):
    """Squared distances from column j of x to all columns."""
    out[:] = 0
    for s in range(0, len(x), ROWS):
        x0, x1, x2, x3 = x[s, j], x[s + 1, j], x[s + 2, j], x[s + 3, j]
        x4, x5, x6, x7 = x[s + 4, j], x[s + 5, j], x[s + 6, j], x[s + 7, j]
        for i in range(len(out)):
            out[i] += (
                ((x[s, i] - x0) ** 2 + (x[s + 1, i] - x1) ** 2)
                + ((x[s + 2, i] - x2) ** 2 + (x[s + 3, i] - x3) ** 2)
                + ((x[s + 4, i] - x4) ** 2 + (x[s + 5, i] - x5) ** 2)
                + ((x[s + 6, i] - x6) ** 2 + (x[s + 7, i] - x7) ** 2)
            )


@_compiled
def _similarities(kind, L, x, scale, j, line, e):
    """Row j of the kernel: of L, or from the features in the columns of x."""
    if kind == GIVEN:
        for i in range(L.shape[1]):
            e[i] = L[j, i]
        return
    if kind == RBF:
        _squared_distances(x, j, line)
        for i in range(len(e)):
            # exp(z) as exp(z / 256)^256, in float64 exact to 1e-7: unlike exp it vectorises.
            z = max(line[i] * scale, -64.0) / 256.0
            y = 1.0 + z * (1.0 + z * (1 / 2 + z * (1 / 6 + z * (1 / 24 + z * (1 / 120)))))
            y *= y
            y *= y
            y *= y
            y *= y
            y *= y
            y *= y
            y *= y
            y *= y
            e[i] = y
    else:
        e[:] = 0
        for s in range(len(x)):
            x0 = x[s, j]
            for i in range(len(e)):
                e[i] += x0 * x[s, i]
        for i in range(len(e)):
            e[i] = min(max(e[i], -1.0), 1.0)
    e[j] = 1


@_compiled
def _first_smallest(bits, tie):
    """Position of the first of the smallest of non-negative floats, given as integers.

    These order alike, and with integers both loops vectorise. What is at most ``tie`` counts
    as equal.
    """
    smallest = bits[0]
    for i in range(len(bits)):
        smallest = min(smallest, bits[i])
    smallest = max(smallest, tie)
    first = len(bits)
    for i in range(len(bits)):
        first = min(first, i + len(bits) * (bits[i] > smallest))
    return first


@_compiled
def _choose(kind, L, x, scale, first, top, tie, stop, known, chosen, line, c, e, deficit, bits):
    """Choose greedily (Eqs. 13-15) until no gain exceeds ``stop``; return how many.

    ``deficit`` is ``top - d_i^2``, at the start of the diagonal, whose largest element is
    ``top``; it is infinite in the padding. Unlike the gain it keeps its digits where items
    hardly overlap. ``bits`` is its memory as integers, and gains equal in float64 count as
    equal (``tie``). ``c[t, i]`` becomes entry t of c_i in Eq. 13. The first ``known`` choices
    are given; else the first one is ``first``, if that is not negative.
    """
    c[:] = 0
    for t in range(len(chosen)):
        j = chosen[t]
        if t >= known:
            j = first if t == 0 and first >= 0 else _first_smallest(bits, tie)
        gain = top - deficit[j]
        if t >= known and not gain > stop:
            return t
        chosen[t] = j
        _similarities(kind, L, x, scale, j, line, e)
        _subtract_rows(c, t, j, e)
        inverse = e.dtype.type(1 / np.sqrt(gain))
        row = c[t]
        for i in range(len(e)):  # Eqs. 14 and 15
            e_i = e[i] * inverse
            row[i] = e_i
            deficit[i] += e_i * e_i
        deficit[j] = np.inf
    return len(chosen)


@_compiled
def _start(kind, L, num, deficit, bits):
    """Set ``deficit`` with nothing chosen; return ``top`` and ``tie``."""
    top = 1.0
    if kind == GIVEN:
        top = L[0, 0]
        for i in range(num):
            top = max(top, L[i, i])
    deficit[0] = max(top, 0.0) * 2.0**-54  # less disappears when taken off top
    tie = bits[0]
    deficit[:] = np.inf
    for i in range(num):
        deficit[i] = top - L[i, i] if kind == GIVEN else 0
    return top, tie


@_compiled
def _choose_from(kind, L, x, scale, num, first, stop, chosen, line, c, e, deficit, bits):
    """:func:`_choose` in float32 as long as that will do, then in float64."""
    known = 0
    if kind != GIVEN or L.itemsize == 4:
        top, tie = _start(kind, L, num, deficit, bits)
        enough = max(stop, SMALLEST_FLOAT32_GAIN * top)
        known = _choose(
            kind, L, x, scale, first, top, tie, enough, 0, chosen, line, c, e, deficit, bits
        )
        if known == len(chosen) or enough == stop:
            return known
    c64 = _zeros(len(chosen), num, np.float64)
    work = _zeros(2, num, np.float64)
    e64, deficit64 = work[0], work[1]
    bits64 = deficit64.view(np.int64)
    top, tie64 = _start(kind, L, num, deficit64, bits64)
    return _choose(
        kind, L, x, scale, first, top, tie64, stop, known, chosen, line, c64, e64, deficit64, bits64
    )


@_compiled
def greedy_map(kernels, threshold, random_start, noise, chosen):
    """Fill ``chosen (B, k)`` from ``kernels (B, N, N)`` and ``noise (B, N)``."""
    num, k = kernels.shape[1], chosen.shape[1]
    c = _zeros(k, num, np.float32)
    work = _zeros(3, num, np.float32)
    line, e, deficit = work[0], work[1], work[2]
    bits = deficit.view(np.int32)
    x = work[:0]
    for b in range(len(kernels)):
        rest = noise[b].copy()
        first = np.argmin(rest) if random_start else -1
        count = _choose_from(
            GIVEN, kernels[b], x, 0.0, num, first, threshold, chosen[b], line, c, e, deficit, bits
        )
        for t in range(k):
            if t >= count:
                chosen[b, t] = np.argmin(rest)
            rest[chosen[b, t]] = np.inf


@_compiled
def _median_of_pairs(x, num, pairs, bits):
    """As ``kernels._median_of_pairs``; ``bits`` is the memory of ``pairs`` as integers."""
    step = -(-num // MEDIAN_ROWS)
    rows = -(-num // step)
    bits = bits[: rows * pairs.shape[1]]
    for r in range(rows):
        _squared_distances(x, r * step, pairs[r])
        pairs[r, num:] = np.inf
    # Each row's zero on the diagonal comes first: skip as many as there are rows.
    rank = rows + (rows * (num - 1) + 1) // 2
    # The largest number that has fewer than ``rank`` smaller ones, from the highest bit down.
    median = np.int32(0)
    for shift in range(30, -1, -1):
        larger = np.int32(median | np.int32(1 << shift))
        smaller = 0
        for i in range(len(bits)):
            smaller += bits[i] < larger
        if smaller < rank:
            median = larger
    return _as_float(median)


@_compiled
def _as_float(bits):
    number = np.empty(1, np.int32)
    number[0] = bits
    return number.view(np.float32)[0]


@_compiled
def _edges(size, parts):
    """Where the parts of ``size`` begin and end, those of adaptive average pooling."""
    edges = np.empty((parts, 2), np.int64)
    for i in range(parts):
        edges[i, 0] = i * size // parts
        edges[i, 1] = -(-(i + 1) * size // parts)
    return edges


@_compiled
def _sums(plane, start, stop, width, channels, column, box):
    """Sums of ``plane`` over lines start..stop and ``width`` pixels from every pixel on."""
    line = plane[start]
    for i in range(len(column)):
        column[i] = line[i]
    for y in range(start + 1, stop):
        line = plane[y]
        for i in range(len(column)):
            column[i] += line[i]
    for i in range(len(column)):
        box[i] = column[i]
    for shift in range(channels, width * channels, channels):
        shifted = column[shift:]
        for i in range(len(shifted)):
            box[i] += shifted[i]


@_compiled
def _finite(value):
    """As ``kernels.unit_features``: 0 for what is not finite, bounded otherwise."""
    if not abs(value) < np.inf:
        return np.float32(0)
    return min(max(value, np.float32(-LARGEST)), np.float32(LARGEST))


@_compiled
def _features(planes, channels, flipped, cols, side_h, side_w, ys, xs, column, box, x):
    """Average units down to ``side_h`` x ``side_w``; unit n becomes column n of x."""
    width = xs[0, 1]
    for part in range(len(xs)):
        width = min(width, xs[part, 1] - xs[part, 0])
    for p in range(len(planes)):
        for v in range(len(ys)):
            start, stop = ys[v, 0], ys[v, 1]
            _sums(planes[p], start, stop, width, channels, column, box)
            unit = v // side_h * cols
            for channel in range(channels):
                feature = ((p * channels + channel) * side_h + v % side_h) * side_w
                part = 0
                for u in range(cols):
                    for w in range(side_w):
                        left, right = xs[part, 0], xs[part, 1]
                        total = box[left * channels + channel]
                        for i in range(left + width, right):  # some are a little wider
                            total += column[i * channels + channel]
                        area = np.float32((stop - start) * (right - left))
                        if flipped:
                            x[feature + side_w - 1 - w, unit + cols - 1 - u] = total / area
                        else:
                            x[feature + w, unit + u] = total / area
                        part += 1
    for s in range(len(x)):
        for i in range(x.shape[1]):
            x[s, i] = _finite(x[s, i])


@_compiled
def _normalize(x, squares):
    """Divide the columns by their norms."""
    squares[:] = 0
    for s in range(len(x)):
        for i in range(len(squares)):
            squares[i] += x[s, i] ** 2
    for i in range(len(squares)):
        squares[i] = 1 / max(np.sqrt(squares[i]), np.float32(1e-12))
    for s in range(len(x)):
        for i in range(len(squares)):
            x[s, i] *= squares[i]


@_compiled
def greedy_scores(
    planes, channels, flipped, rows, cols, side_h, side_w, kind, bandwidth, k, threshold, scores
):
    """Put the choices from images into ``scores (B, N)``, at first random numbers.

    ``planes`` is ``(B, P, H, W * channels)``: P colour planes, or one with the channels of
    a pixel side by side. ``flipped``: mirror images of those meant.
    """
    num = rows * cols
    ys = _edges(planes.shape[2], rows * side_h)
    xs = _edges(planes.shape[3] // channels, cols * side_w)
    x = _zeros(planes.shape[1] * channels * side_h * side_w, num, np.float32)
    c = _zeros(k, num, np.float32)
    work = _zeros(3, num, np.float32)
    line, e, deficit = work[0], work[1], work[2]
    bits = deficit.view(np.int32)
    column = np.empty(planes.shape[3], np.float32)
    box = np.empty_like(column)
    few = min(num, MEDIAN_ROWS)
    pairs = np.empty((few, x.shape[1]), np.float32)
    pair_bits = pairs.view(np.int32).ravel()
    L = pairs[:0]
    chosen = np.empty(k, np.int64)
    for b in range(len(planes)):
        _features(planes[b], channels, flipped, cols, side_h, side_w, ys, xs, column, box, x)
        scale = 0.0
        if kind == COSINE:
            _normalize(x, line)
        elif bandwidth > 0:
            scale = -0.5 / bandwidth**2
        else:
            scale = -0.5 / max(_median_of_pairs(x, num, pairs, pair_bits), TINY)
        first = np.argmin(scores[b])
        count = _choose_from(
            kind, L, x, scale, num, first, threshold, chosen, line, c, e, deficit, bits
        )
        for t in range(count):
            scores[b, chosen[t]] = t - k


@_compiled
def image_mask(
    image, flipped, order, rows, cols, side_h, side_w, kind, bandwidth, k, threshold, scale
):
    """Mask ``(rows * scale, cols * scale)``, 1 = masked, of one image ``(H, W, C)``.

    ``order`` is a random permutation of the units, of which random masking masks the first
    and keeps the last. ``flipped``: the image is the mirror image of the one meant.
    """
    height, width, channels = image.shape
    num = rows * cols
    scores = np.empty((1, num), np.float32)
    for rank in range(num):
        scores[0, order[rank]] = num - 1 - rank
    planes = image.reshape(1, 1, height, width * channels)
    greedy_scores(
        planes,
        channels,
        flipped,
        rows,
        cols,
        side_h,
        side_w,
        kind,
        bandwidth,
        k,
        threshold,
        scores,
    )
    missing = k
    for unit in range(num):
        missing -= scores[0, unit] < 0
    mask = np.ones((rows * scale, cols * scale), np.int64)
    for rank in range(num - 1, -1, -1):
        chosen = scores[0, order[rank]] < 0
        if chosen or missing > 0:
            missing -= not chosen
            row, col = order[rank] // cols * scale, order[rank] % cols * scale
            mask[row : row + scale, col : col + scale] = 0
    return mask
