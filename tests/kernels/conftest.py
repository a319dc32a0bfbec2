"""The tests under ``interpreted`` need TRITON_INTERPRET=1 from the start of their process.

``test_interpreted.py`` runs them in one of their own; here they are left out.
"""

from selftrain.kernels._dispatch import INTERPRETED

collect_ignore = ["ahead_of_time_divergence.py"]  # a script, which finds the other one beside it
if not INTERPRETED:
    collect_ignore.append("interpreted")
