"""Landscapes whose truth is known, to check the detector of escapes on: CPU, seconds.

Analytic ones (:mod:`landscapes.surfaces`), with noisy gradient descent driven by a learning-rate trace, vectorised
over seeds: a tilted double well, a quadratic, a straight and a curved river. Basins are known by construction, so a run
*has* escaped or has not. And a small network with BatchNorm on handwritten digits (:mod:`landscapes.digits`), for what
only networks have: statistics to recompute, and permutations of their units.
"""
