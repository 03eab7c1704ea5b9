"""Model families, one published architecture a file; knows nothing about decoding methods."""
