"""Other formats and other libraries: converted by copying, with labels."""

from featurestore.exports.rsatoolbox import from_rsatoolbox as from_rsatoolbox
from featurestore.exports.rsatoolbox import to_rsatoolbox as to_rsatoolbox
