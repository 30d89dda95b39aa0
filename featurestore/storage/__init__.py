"""What is kept: blobs, slots, columns, and how to read them back."""
