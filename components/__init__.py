"""The contract of each stage: one typed KFP component a module."""
