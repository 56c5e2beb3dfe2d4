"""Laws: quantities that a flow conserves."""

from .attention import embedding_output_balance as embedding_output_balance
from .attention import hidden_unit_balance as hidden_unit_balance
from .attention import key_sum as key_sum
from .attention import query_key_balance as query_key_balance
from .attention import sen as sen
from .attention import sen_norm as sen_norm
from .base import Law as Law
from .base import drift as drift
from .base import drift_path as drift_path
from .focus import hard_focus as hard_focus
from .focus import marginal_focus as marginal_focus
from .focus import soft_focus as soft_focus
from .heads import factor_balance as factor_balance
from .heads import logit_sum as logit_sum
from .heads import score_sum as score_sum
