"""Networks, by the library they come from; each is imported only when one of its is loaded."""
