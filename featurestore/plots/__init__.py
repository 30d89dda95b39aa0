"""Pictures of geometries and scores; needs matplotlib (``pip install "featurestore[plot]"``)."""
