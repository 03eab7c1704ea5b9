"""Fixtures that several test files share; knows nothing about any one module's tests."""
