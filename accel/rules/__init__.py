"""Acceptance rules, one a file; they know laws and drafts, and nothing about who drafted."""
