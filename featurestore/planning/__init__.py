"""What is missing, and what it would cost."""
