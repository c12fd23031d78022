"""Whether drafts or kernels change answers, and how far."""
