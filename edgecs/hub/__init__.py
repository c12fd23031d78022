"""Models and drafters as files: manifests, downloads, which ones fit each other."""
