"""Compositions of components: one KFP pipeline a module."""
