"""The equations of SGD with label noise in compiled loops, which many points of a sweep call for.

manifold.py and course.py state the same equations for the kicks of any dynamics.  Here c = 1, k = 0
and E[e^2] is mu^2 + x.C x + sigma^2, so R = Sigma is diagonal, and the pull is Sigma delta.
"""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled

LARGEST = 1e100
"""A covariance with a larger entry has no limit."""

STAGES = np.array([
    [0, 0, 0, 0, 0, 0],
    [1 / 5, 0, 0, 0, 0, 0],
    [3 / 40, 9 / 40, 0, 0, 0, 0],
    [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
])  # fmt: skip
"""The stages of Dormand and Prince; the last is the step of order 5."""
ERROR = np.array(
    [-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40]
)  # fmt: skip
"""The step of order 4 less that of order 5."""
DENSE = np.array([
    [1, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432],
    [0, 0, 0, 0],
    [0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799],
    [0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072],
    [0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632],
    [0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844],
    [0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423],
])  # fmt: skip
"""The interpolant of order 4 inside a step."""


@compiled(nogil=True, error_model="numpy")
def covariance(  # type: ignore[no-untyped-def]
    whitened, alpha, vectors, lr, of_label, of_square, of_mean, guess, tolerance, sweeps
):
    """N and C of equation (1) of modes.py in whitened axes, and whether there is such a state.

    `alpha` : (r,) and `vectors` : (r, r) are the eigenvalues and vectors of A there, `of_label` is
    the share of the noise times sigma^2, `guess` C at a state close by, or zeros.

    Uses fixed-point iteration in A's eigenbasis, where Sigma = I, so that
    C_ij = lr N_ij alpha_i alpha_j/(alpha_i + alpha_j).  The map is linear and monotone: it
    converges if and only if there is a positive solution.  The shape of C hardly changes in the
    iteration; its size comes from the trace of the equation.
    """
    count, rank = whitened.shape
    samples = np.dot(whitened, vectors)
    weighted = np.empty_like(samples)
    C = np.dot(vectors.T, np.dot(guess, vectors))
    gain = np.empty((rank, rank))
    label_trace = 0.0
    for i in range(rank):
        for j in range(rank):
            gain[i, j] = lr / (1 / alpha[i] + 1 / alpha[j])
        label_trace += gain[i, i] * of_label
        if guess[0, 0] == 0.0:
            C[i, i] = gain[i, i] * of_label
    found = False
    for _ in range(sweeps):
        product = np.dot(samples, C)
        for k in range(count):
            square = 0.0
            for i in range(rank):
                square += product[k, i] * samples[k, i]
            for i in range(rank):
                weighted[k, i] = samples[k, i] * square
        Q = np.dot(samples.T, weighted)
        excess = 0.0
        for i in range(rank):
            excess += C[i, i] - gain[i, i] * (of_square * Q[i, i] / count + of_mean * C[i, i])
        size = label_trace / excess if excess > 0 else 1.0
        largest, change = 0.0, 0.0
        for i in range(rank):
            for j in range(rank):
                old = size * C[i, j]
                new = size * gain[i, j] * (of_square * Q[i, j] / count + of_mean * C[i, j])
                if i == j:
                    new += gain[i, i] * of_label
                C[i, j] = new
                largest = max(largest, abs(new))
                change = max(change, abs(new - old))
        if change <= tolerance * largest:
            found = True
            break
        if not largest < LARGEST:
            break
    N = np.dot(vectors, np.dot(C / gain, vectors.T))
    return N, np.dot(vectors, np.dot(C, vectors.T)), found


@compiled(nogil=True, error_model="numpy")
def drift(  # type: ignore[no-untyped-def]
    whitened, spectrum, target, lr, of_label, of_square, of_mean, P, q, guess, tolerance, sweeps
):
    """The fields of manifold.Drift in their order, and whether there is a quasi-stationary state.

    The arguments are those of `covariance`, the data, and the state P = W^T W, q = |a|^2.
    """
    rank = len(target)
    root, total = np.sqrt(spectrum), spectrum.sum()
    scaled, start = np.empty((rank, rank)), np.empty((rank, rank))
    for i in range(rank):
        for j in range(rank):
            both = root[i] * root[j]
            scaled[i, j] = both * (P[i, j] + (q if i == j else 0.0))
            start[i, j] = both * guess[i, j]
    alpha, vectors = np.linalg.eigh(scaled)
    for i in range(rank):
        alpha[i] = max(alpha[i], 1e-12 * alpha[-1])
    noise, whitened_C, found = covariance(
        whitened, alpha, vectors, lr, of_label, of_square, of_mean, start, tolerance, sweeps
    )
    inverse = np.dot(vectors / alpha, vectors.T)
    N, C = np.empty((rank, rank)), np.empty((rank, rank))
    nu, loss = 0.0, 0.0
    for i in range(rank):
        for j in range(rank):
            both = root[i] * root[j]
            inverse[i, j] *= both
            N[i, j] = noise[i, j] * both
            C[i, j] = whitened_C[i, j] / both
        nu += N[i, i]
        loss += whitened_C[i, i] / 2
    c = lr * nu / (2 * total)
    Z = c * inverse
    trace = np.trace(Z)
    mean = -c * np.dot(inverse, (total + spectrum) * target) / spectrum
    zbar = np.dot(inverse, mean - (3 * np.dot(Z, target) + trace * target) / 2)
    NZ = np.dot(N, Z)
    K_W = N + (NZ + NZ.T) / 2 - nu * Z
    K_a = nu * (1 + trace) - np.trace(NZ)
    w = nu * zbar - np.dot(N, zbar)
    hold = np.dot(inverse, np.dot(K_W, target) + K_a * target + np.dot(P, w) - q * w) / 2
    fields = (
        K_W, w, K_a, hold, Z, zbar, N, C,
        2 * np.dot(target, zbar) + c * rank,
        loss,
        lr * nu / 2 * np.sum(1 / alpha) / rank,
        lr * np.sum(alpha) / rank,
        lr * max(alpha[0], 1e-3 * alpha[-1]),
        1.3 * lr**2 * nu,
    )  # fmt: skip
    return fields, inverse, found


@compiled(nogil=True, error_model="numpy")
def slow_slope(  # type: ignore[no-untyped-def]
    state, gram, whitened, spectrum, target, lr, of_label, of_square, of_mean, guess, tolerance,
    sweeps,
):  # fmt: skip
    """The slope of the slow part of the course (course.py) at `state`, G; and `drift` there."""
    rank = len(target)
    G = state.copy().reshape(rank + 1, rank + 1)
    product = np.dot(G.T, np.dot(gram, G))
    P, theta = product[:rank, :rank].copy(), product[:rank, rank].copy()
    fields, inverse, found = drift(
        whitened, spectrum, target, lr, of_label, of_square, of_mean, P, product[rank, rank], guess,
        tolerance, sweeps,
    )  # fmt: skip
    K_W, w, K_a, hold, stiffness = fields[0], fields[1], fields[2], fields[3], fields[13]
    # Rounding and the integrator's errors move theta away: turn it back at the largest rate.
    held = hold + stiffness / (4 * lr**2) * np.dot(inverse, target - theta)
    turning = np.empty((rank + 1, rank + 1))
    turning[:rank, :rank] = -K_W / 2
    turning[:rank, rank] = held - w / 2
    turning[rank, :rank] = held + w / 2
    turning[rank, rank] = -K_a / 2
    return lr**2 * np.dot(G, turning).ravel(), fields, found


@compiled(nogil=True, error_model="numpy")
def fit(  # type: ignore[no-untyped-def]
    start, times, gram, samples, spectrum, lr, sigma, of_noise, of_residuals, of_mean, frozen,
    relative, absolute, attempts,
):  # fmt: skip
    """The fit from `start` at time 0: states at the ascending `times`, and whether it came through.

    The pair of Dormand and Prince of orders 5 and 4, with the step control of Hairer, Norsett,
    Wanner (Solving Ordinary Differential Equations I, II.4) and Shampine's interpolant of order 4
    (Some practical Runge-Kutta formulas, 1986) between the steps.
    """
    arguments = (gram, samples, spectrum, lr, sigma, of_noise, of_residuals, of_mean, frozen)
    states = np.full((len(times), len(start)), np.nan)
    K = np.empty((7, len(start)))
    state, time, end = start.copy(), 0.0, times[-1]
    K[0] = fit_slope(state, *arguments)
    scale = absolute + relative * np.abs(state)
    step = min(end, 0.01 * _norm(state / scale) / max(_norm(K[0] / scale), 1e-300))
    reached = 0
    for _ in range(attempts):
        step = min(step, end - time)
        for stage in range(1, 7):
            moved = state.copy()
            for earlier in range(stage):
                moved += (step * STAGES[stage, earlier]) * K[earlier]
            K[stage] = fit_slope(moved, *arguments)
        after = moved  # the last stage is the step itself
        scale = absolute + relative * np.maximum(np.abs(state), np.abs(after))
        error = _norm(step * np.dot(K.T, ERROR) / scale)
        if not np.isfinite(error):
            error = 1e10
        if error <= 1:
            later = time + step if time + step < end * (1 - 1e-14) else end
            while reached < len(times) and times[reached] <= later:
                x = (times[reached] - time) / step
                powers = np.array([x, x**2, x**3, x**4])
                states[reached] = state + step * np.dot(K.T, np.dot(DENSE, powers))
                reached += 1
            if reached == len(times):
                return states, True
            state, time = after, later
            K[0] = K[6]
        step *= min(10.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
    return states, False


@compiled(nogil=True, error_model="numpy")
def _norm(values):  # type: ignore[no-untyped-def]
    """The root mean square."""
    return np.sqrt(np.mean(values**2))


@compiled(nogil=True, error_model="numpy")
def fit_slope(  # type: ignore[no-untyped-def]
    state, gram, samples, spectrum, lr, sigma, of_noise, of_residuals, of_mean, frozen
):
    """The slope of the fit (course.py) at `state`: G, C and delta, one after another."""
    rank = samples.shape[1]
    size = rank + 1
    G = state[: size * size].copy().reshape(size, size)
    C = state[size * size : -rank].copy().reshape(rank, rank)
    delta = state[-rank:].copy()
    product = np.dot(G.T, np.dot(gram, G))
    q = product[rank, rank]
    theta = product[:rank, rank].copy()
    A = product[:rank, :rank].copy()
    for i in range(rank):
        A[i, i] += q
    pull = spectrum * delta
    N = moments(samples, spectrum, C, delta, sigma, of_noise, of_residuals, of_mean)
    trace = 0.0
    for i in range(rank):
        trace += N[i, i]
    slope = np.empty_like(state)
    dG = slope[: size * size].reshape(size, size)
    dC = slope[size * size : -rank].reshape(rank, rank)
    if frozen:
        dG[:, :] = 0.0
    else:
        left = np.dot(G[:, :rank].copy(), N)
        for i in range(size):
            along = 0.0
            for j in range(rank):
                dG[i, j] = -lr * G[i, rank] * pull[j] - lr**2 / 2 * left[i, j]
                along += G[i, j] * pull[j]
            dG[i, rank] = -lr * along - lr**2 / 2 * trace * G[i, rank]
    scaled, spread = np.empty_like(C), np.empty_like(C)
    for i in range(rank):
        for j in range(rank):
            scaled[i, j] = spectrum[i] * C[i, j]
            spread[i, j] = N[i, j] - pull[i] * pull[j]
    restoring = np.dot(A, scaled)
    kicked = np.dot(A, np.dot(spread, A))
    turned, contracted = np.dot(A, pull), np.dot(N, theta)
    for i in range(rank):
        for j in range(rank):
            dC[i, j] = lr**2 * kicked[i, j] - lr * (restoring[i, j] + restoring[j, i])
        d_delta = -lr * turned[i]
        if not frozen:
            d_delta -= lr**2 / 2 * (contracted[i] + trace * theta[i])
        slope[size * size + rank * rank + i] = d_delta
    return slope


@compiled(nogil=True, error_model="numpy")
def moments(  # type: ignore[no-untyped-def]
    samples, spectrum, C, delta, sigma, of_noise, of_residuals, of_mean
):
    """N = E[g g^T] at C : (r, r) and a mean predictor theta_star + delta : (r,)."""
    count, rank = samples.shape
    product = np.dot(samples, C)
    mean = np.dot(samples, delta)
    weighted = np.empty_like(samples)
    for k in range(count):
        square = mean[k] ** 2
        for i in range(rank):
            square += product[k, i] * samples[k, i]
        weight = of_noise * (of_residuals * square + sigma**2) / count
        for i in range(rank):
            weighted[k, i] = weight * samples[k, i]
    N = np.dot(samples.T, weighted)
    if of_mean > 0:
        for i in range(rank):
            for j in range(rank):
                second = C[i, j] + delta[i] * delta[j]
                N[i, j] += of_mean * spectrum[i] * spectrum[j] * second
    return N
