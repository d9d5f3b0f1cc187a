"""Kubeflow Pipelines: the platform's settings, compiling, and running compiled YAML.

``settings`` and ``platform`` say where stages run; ``compiled`` writes and reads the YAML;
``local`` runs it on this machine.
"""
