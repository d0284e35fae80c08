"""The numeric library: an IoU-aware RetinaNet, its losses, its data and its evaluation.

It knows nothing of clusters, runs or trackers, and importing this package imports neither torch nor any submodule.
"""
