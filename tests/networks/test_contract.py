from featurestore.networks.preprocess import preprocess
from featurestore.testing.sources import SourceTests
from featurestore.testing.tiny import tiny_network


class TestTorchvision(SourceTests):
    source = "torchvision"
    model = "shufflenet_v2_x0_5"


OPTIONS = {"weights": "random", "seed": 1, "preprocess": preprocess(size=(64, 96))}


class TestSegmentation(SourceTests):
    source = "torchvision"
    model = "lraspp_mobilenet_v3_large"
    options = OPTIONS


class TestTiny(SourceTests):
    """A wrapped network keeps the same contract."""

    source = "torchvision"
    model = "alexnet"

    @classmethod
    def load(cls):
        return tiny_network()
