"""Models: what looks. Requests, records and protocols here; networks in `sources`."""
