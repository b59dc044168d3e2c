"""Compiled kernels: the only package that imports numba; it knows none of thermodiff's objects."""
