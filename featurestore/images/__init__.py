"""What is looked at: pictures, their names and their digests."""
