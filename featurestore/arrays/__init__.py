"""What is read: committed rows as labelled, lazy arrays."""
