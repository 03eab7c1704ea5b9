"""Loops that train tokenizers and generators, and the recipes they follow."""
