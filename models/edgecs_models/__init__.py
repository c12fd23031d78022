"""Manifests of models that edgecs knows by name, one TOML file each; data only."""
