"""Formulas: the equations of a flow and of a descent, as LaTeX."""

from typing import Any


def flow_formula(scaled: bool) -> str:
    """The equation of a gradient flow.

    Args:
        scaled: whether parts of the parameters have rates of their own, the diagonal R.

    Returns:
        LaTeX.

    >>> print(flow_formula(scaled=False))
    \\frac{d\\theta}{dt} = -\\nabla L(\\theta)
    """
    rates = r"R\," if scaled else ""
    return rf"\frac{{d\theta}}{{dt}} = -{rates}\nabla L(\theta)"


def step_formula(optimizer: dict[str, Any], scaled: bool = False) -> str | None:
    """The step of a descent.

    Args:
        optimizer: its configuration, as in `summary["config"]["optimizer"]`.
        scaled: as for `flow_formula`.

    Returns:
        LaTeX; None for optimisers whose step is not known.

    >>> print(step_formula({"name": "sgd", "learning_rate": 0.1}))
    \\theta_{k+1} = \\theta_k - \\eta\\,\\nabla L(\\theta_k),\\quad \\eta = 0.1
    """
    name, rate = optimizer["name"], optimizer.get("learning_rate")
    varies = not isinstance(rate, float | int)
    eta = r"\eta_k" if varies else r"\eta"
    decay = optimizer.get("weight_decay") or 0.0
    shrunk = rf" - {eta}\lambda\theta_k" if decay else ""
    values = [] if varies else [rf"\eta = {rate:g}"]
    eta += r"\,R" if scaled else ""
    beta = optimizer.get("momentum") or 0.0
    if name == "sgd" and not beta:
        step = rf"\theta_{{k+1}} = \theta_k - {eta}\,\nabla L(\theta_k){shrunk}"
    elif name == "sgd":
        look = r"\nabla L(\theta_k) + \beta v_{k+1}"
        move = f"({look})" if optimizer.get("nesterov") else "v_{k+1}"
        step = r"v_{k+1} = \beta v_k + \nabla L(\theta_k),\quad "
        step += rf"\theta_{{k+1}} = \theta_k - {eta}\,{move}{shrunk}"
        values.append(rf"\beta = {beta:g}")
    else:
        return None
    values += [rf"\lambda = {decay:g}"] if decay else []
    return r",\quad ".join([step, *values])
