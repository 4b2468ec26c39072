"""What photos can be kept as: tokenizers, fine-tuned and not, and files."""
