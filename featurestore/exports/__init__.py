"""Other formats and other libraries: converted by copying, with labels."""
