"""A noise layer that hides tokens while a frozen sentence encoder still understands the passage.

It knows only the public functions of ``fused_mi`` and needs the extra ``train``. Importing this
package is cheap: the command line is :mod:`fused_mi.train.cli`, heavy modules load with a run.
"""
