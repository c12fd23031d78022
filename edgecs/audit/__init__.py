"""Audits whether drafts or kernels change answers, and how much."""
