"""The equations of focus in two numbers, typed from the paper's notes, corrected."""

import numpy as np
import scipy.integrate


def share(x, among):
    """The softmax of x among zeros."""
    return np.exp(x) / (np.exp(x) + among - 1)


def mu_velocity(loss, c, alpha, mu):
    """μ' for an attention α."""
    if loss == "soft":
        return alpha / (np.exp(alpha * mu) + c - 1)
    beta = share(mu, c)
    z = 1 if loss == "hard" else alpha + (1 - alpha) / (c * beta)
    return alpha / (z * (np.exp(mu) + c - 1))


def nu_velocity(loss, c, alpha, mu):
    """ν' for an attention α."""
    if loss == "soft":
        rest = np.exp(alpha * mu) + c - 1
        return alpha * (1 - alpha) * mu * (c - 1) / (c * rest)
    beta = share(mu, c)
    if loss == "hard":
        return alpha * (1 - alpha) * np.log(c * beta) / c
    z = alpha * beta + (1 - alpha) / c
    return alpha * (beta / z - 1) / c


def velocity(loss, m, c, z):
    mu, nu = z
    alpha = share(nu, m)
    return np.array([each(loss, c, alpha, mu) for each in (mu_velocity, nu_velocity)])


def oracle(loss, m, c, start, ts):
    """μ and ν at the times, by SciPy."""
    return scipy.integrate.solve_ivp(
        lambda t, z: velocity(loss, m, c, z),
        (ts[0], ts[-1]),
        start,
        "DOP853",
        ts,
        rtol=1e-12,
        atol=1e-14,
    ).y
