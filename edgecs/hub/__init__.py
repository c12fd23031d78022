"""Models and drafters as files: manifests, downloads, compatibility."""
