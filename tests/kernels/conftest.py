"""The tests under ``interpreted`` need TRITON_INTERPRET=1 from the start of their process.

``test_interpreted.py`` runs them in one of their own; here they are left out.
"""

from selftrain.kernels._dispatch import INTERPRETED

# Scripts, which find the other one beside them.
collect_ignore = ["ahead_of_time_divergence.py", "ahead_of_time_hl_gauss.py"]
if not INTERPRETED:
    collect_ignore.append("interpreted")
