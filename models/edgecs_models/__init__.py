"""Manifests of models that edgecs knows by name, one TOML file each; no code."""
