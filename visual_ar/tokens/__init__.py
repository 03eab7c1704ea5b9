"""What a token is, one kind a file, and the laws over each; knows no model and no decoding."""
