"""The tests under ``interpreted`` need TRITON_INTERPRET=1 from the start of their process.

``test_interpreted.py`` runs them in one of their own; here they are left out.
"""

from selftrain.kernels._dispatch import INTERPRETED

collect_ignore = [] if INTERPRETED else ["interpreted"]
