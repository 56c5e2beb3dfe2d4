"""Laws of linear attention that is trained on regression in context (Zhang, Singh,
Latham & Saxe 2025).

The loss is one of M = Σ_h v_h U_h, with G = −½ ∂L/∂M. Heads with one matrix have
v_h' = ⟨U_h, G⟩ and U_h' = v_h G, so (v_g v_h)' = v_h ⟨U_g, G⟩ + v_g ⟨U_h, G⟩ =
⟨U_g, U_h⟩'. With U_h = Σ_r k_hr q_hrᵀ, v_h' = Σ_r k_hrᵀ G q_hr and k_hr' = v_h G q_hr,
so ½ (v_h²)' = v_h Σ_r k_hrᵀ G q_hr = ½ Σ_r (‖k_hr‖²)'.
"""

import jax.numpy as jnp

from .base import Law

_ZHANG = "Zhang, Singh, Latham & Saxe 2025 (arXiv 2501.16265)"


def head_balance() -> Law:
    """v_g v_h − ⟨U_g, U_h⟩ is constant for heads with one matrix for key and query.

    Returns:
        The `Law`, heads × heads, of `MergedHeads`.
    """
    return Law(
        _head_terms,
        "head_balance",
        "exact",
        citation=_ZHANG,
        dims=("head", "head_2"),
        long_name="balance of values and matrices",
    )


def value_balance() -> Law:
    """v_h² − Σ_r ‖k_hr‖² is constant for heads with separate keys and queries.

    Returns:
        The `Law`, one entry per head, of `SeparateHeads`.
    """
    return Law(
        _value_terms,
        "value_balance",
        "exact",
        citation=_ZHANG,
        dims=("head",),
        long_name="balance of values and keys",
    )


def _head_terms(params):
    products = jnp.einsum("hij,gij->hg", params.matrices, params.matrices)
    return jnp.stack([jnp.outer(params.values, params.values), -products])


def _value_terms(params):
    return jnp.stack([params.values**2, -jnp.sum(params.keys**2, axis=(1, 2))])
