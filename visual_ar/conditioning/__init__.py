"""What a picture is conditioned on, and who knows which kind that is; knows nothing of decoding."""
